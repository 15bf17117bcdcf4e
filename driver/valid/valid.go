// Package valid says what may stand in a config: app ids, names, texts and an
// app's own data. It is a leaf, so that a program that checks an administrator's
// files says the same as the daemon. Errors are for people, one lower-case
// sentence each.
package valid

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxString is the length of the longest string that is taken, in bytes.
const maxString = 255

// App refuses what is no reverse-DNS app id.
func App(app string) error {
	if len(app) > maxString {
		return fmt.Errorf("the app id has %d bytes, %d are allowed", len(app), maxString)
	}
	elements := strings.Split(app, ".")
	if len(elements) < 2 {
		return fmt.Errorf("app id %q is not reverse-DNS: it needs two or more elements", app)
	}
	for _, e := range elements {
		if !validElement(e) {
			return fmt.Errorf("app id %q is not reverse-DNS: element %q may hold A-Z, a-z, 0-9, _ and -, and not begin with a digit or -", app, e)
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

// Text refuses what must not reach logs, files and screens: control
// characters, invalid UTF-8 and strings that are too long.
func Text(what, text string) error {
	switch {
	case len(text) > maxString:
		return fmt.Errorf("the %s has %d bytes, %d are allowed", what, len(text), maxString)
	case !utf8.ValidString(text):
		return fmt.Errorf("the %s %q is not valid UTF-8", what, text)
	case strings.ContainsFunc(text, unicode.IsControl):
		return fmt.Errorf("the %s %q has control characters", what, text)
	}
	return nil
}

// Name refuses what cannot be the name of a config.
func Name(name string) error {
	if name == "" {
		return errors.New("the name is empty")
	}
	return Text("name", name)
}
