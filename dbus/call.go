package dbus

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/stream"
	"github.com/vpnprovider/vpnproviderd/driver"
)

// How many bytes the body of a call may have, and together with its header fields
// too: paths and fields that nobody knows can be long.
const (
	maxLists = 1 << 20   // of SetParameters
	maxBody  = 128 << 10 // of all else: no config may have that much data
)

// longest is for the call of a header. A body that has no use is not read into
// memory, and not decoded, which can take it twenty times over.
func longest(h stream.Header) int {
	if h.Member == "SetParameters" {
		return maxLists
	}
	return maxBody
}

var errUnreadable = errors.New("the message cannot be decoded")

// call is one method call. It owns the descriptors that came with it.
type call struct {
	path, iface, member, sender, signature string

	serial uint32
	fds    []int
	body   []any // set by decode

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

// newCall makes a call of a message, which it owns with the descriptors. No
// message is one that was too long.
func newCall(h stream.Header, message []byte, fds []int) *call {
	c := &call{
		path: h.Path, iface: h.Interface, member: h.Member, sender: h.Sender, signature: h.Signature,
		serial: h.Serial, fds: fds, message: message, size: len(message),
		noReply:     h.Flags&godbus.FlagNoReplyExpected != 0,
		interactive: h.Flags&godbus.FlagAllowInteractiveAuthorization != 0,
	}
	if message == nil {
		c.path = "" // it can be what is long
		c.err = driver.Errorf(driver.KindLimitExceeded, "the message is longer than %d bytes", longest(h))
	}
	return c
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

func closeAll(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}

func (c *call) String() string {
	return fmt.Sprintf("%s.%s on %s", c.iface[strings.LastIndexByte(c.iface, '.')+1:], c.member, c.path)
}
