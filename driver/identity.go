package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxString is the length of the longest string taken from a caller, in bytes.
const maxString = 255

// Caller is who asks: a connection and the user behind it.
type Caller struct {
	UID uint32

	// Conn identifies the connection for as long as the host runs (the unique
	// name on the bus).
	Conn string

	// Others is set where the caller was found to be allowed to manage what
	// belongs to other users. root always is.
	Others bool
}

// sees says whether the caller may know of what owner owns.
func (c Caller) sees(owner uint32) bool { return c.UID == owner || c.managesOthers() }

func (c Caller) managesOthers() bool { return c.UID == 0 || c.Others }

// ConfigID identifies a config. The same user, app and name give the same id
// again.
type ConfigID string

// NewConfigID is the first half of the SHA-256 over the three, with a NUL
// between each, in hex.
func NewConfigID(uid uint32, app, name string) ConfigID {
	sum := sha256.Sum256([]byte(strconv.FormatUint(uint64(uid), 10) + "\x00" + app + "\x00" + name))
	return ConfigID(hex.EncodeToString(sum[:16]))
}

// SessionID counts up and is never used again while the host runs. 0 is no
// session.
type SessionID uint64

// checkApp refuses what is no reverse-DNS app id.
func checkApp(app string) error {
	if len(app) > maxString {
		return Errorf(KindInvalidParameter, "the app id has %d bytes, %d are allowed", len(app), maxString)
	}
	elements := strings.Split(app, ".")
	if len(elements) < 2 {
		return Errorf(KindInvalidParameter, "app id %q is not reverse-DNS: it needs two or more elements", app)
	}
	for _, e := range elements {
		if !validElement(e) {
			return Errorf(KindInvalidParameter, "app id %q is not reverse-DNS: element %q may hold A-Z, a-z, 0-9, _ and -, and not begin with a digit or -", app, e)
		}
	}
	return nil
}

func validElement(e string) bool {
	for i, c := range []byte(e) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return false
		}
	}
	return e != ""
}

// checkText refuses what must not reach logs, files and screens: control
// characters, invalid UTF-8 and strings that are too long.
func checkText(what, text string) error {
	switch {
	case len(text) > maxString:
		return Errorf(KindInvalidParameter, "the %s has %d bytes, %d are allowed", what, len(text), maxString)
	case !utf8.ValidString(text):
		return Errorf(KindInvalidParameter, "the %s %q is not valid UTF-8", what, text)
	case strings.ContainsFunc(text, unicode.IsControl):
		return Errorf(KindInvalidParameter, "the %s %q has control characters", what, text)
	}
	return nil
}

func checkName(name string) error {
	if name == "" {
		return Errorf(KindInvalidParameter, "the name is empty")
	}
	return checkText("name", name)
}

// Check says why a record cannot be a config's.
func (r Record) Check() error {
	if err := checkApp(r.App); err != nil {
		return err
	}
	if err := checkName(r.Name); err != nil {
		return err
	}
	if r.Source != SourceProvider && r.Source != SourcePlatform {
		return Errorf(KindInvalidParameter, "the source is %q", r.Source)
	}
	return r.Data.check()
}
