package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"

	"github.com/vpnprovider/vpnproviderd/driver/valid"
)

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

// refused is what a caller is told of a value that is not valid; nil for none.
func refused(err error) error {
	if err == nil {
		return nil
	}
	return Errorf(KindInvalidParameter, "%v", err)
}

func checkApp(app string) error         { return refused(valid.App(app)) }
func checkName(name string) error       { return refused(valid.Name(name)) }
func checkText(what, text string) error { return refused(valid.Text(what, text)) }

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
