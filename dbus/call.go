package dbus

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/driver"
)

var (
	errTooLong    = driver.Errorf(driver.KindLimitExceeded, "the message is longer than %d bytes", maxBody)
	errUnreadable = errors.New("the message cannot be decoded")
)

// call is one method call. It owns the descriptors that came with it.
type call struct {
	header
	fds  []int
	body []any // set by decode

	message []byte // nil once it is decoded, or is not to be
	size    int    // of the message, in bytes
	err     error  // why it cannot be served

	noReply     bool
	interactive bool // the caller allows that a person is asked

	// detach lets the sender's next call begin; this one will wait for
	// something. Set by the dispatcher.
	detach func()

	// finish says that the call is in flight no more. Set by the dispatcher; it
	// may be called again.
	finish func()
}

// newCall makes a call of a message, which it owns with the descriptors.
func newCall(h header, message []byte, fds []int) *call {
	return &call{
		header: h, fds: fds, message: message, size: len(message),
		noReply:     h.flags&godbus.FlagNoReplyExpected != 0,
		interactive: h.flags&godbus.FlagAllowInteractiveAuthorization != 0,
	}
}

// decode makes the body of the message.
func (c *call) decode() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errUnreadable
		}
	}()
	m, err := godbus.DecodeMessageWithFDs(bytes.NewReader(c.message), c.fds)
	if err != nil {
		return errUnreadable
	}
	c.body, c.message = m.Body, nil
	return nil
}

// take gives a descriptor out of the arguments to the caller, who owns it from
// then on.
func (c *call) take(arg any, name string) (*os.File, error) {
	fd, ok := arg.(godbus.UnixFD)
	if i := slices.Index(c.fds, int(fd)); ok && i >= 0 {
		c.fds = slices.Delete(c.fds, i, i+1)
		return os.NewFile(uintptr(fd), name), nil
	}
	return nil, driver.Errorf(driver.KindInvalidParameter, "the %s is not a descriptor that was passed", name)
}

// close closes the descriptors that nobody took.
func (c *call) close() {
	closeAll(c.fds)
	c.fds = nil
}

func (c *call) String() string {
	return fmt.Sprintf("%s.%s on %s", c.iface[strings.LastIndexByte(c.iface, '.')+1:], c.member, c.path)
}
