package dbus

import (
	"bytes"
	"encoding/binary"
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
	sender    string
	path      string
	iface     string // may be empty
	member    string
	signature string
	serial    uint32
	body      []any
	fds       []int

	noReply     bool
	interactive bool  // the caller allows that a person is asked
	err         error // why it cannot be served

	// detach lets the sender's next call begin; this one will wait for
	// something. Set by the dispatcher.
	detach func()
}

// decode makes a call of a message. It owns fds.
func decode(message []byte, order binary.ByteOrder, fds []int) (c *call) {
	defer func() {
		if p := recover(); p != nil {
			closeAll(fds)
			c = unreadable(message, order, errUnreadable)
		}
	}()
	m, err := godbus.DecodeMessageWithFDs(bytes.NewReader(message), fds)
	if err != nil {
		closeAll(fds)
		return unreadable(message, order, errUnreadable)
	}
	return &call{
		sender: text(m, godbus.FieldSender), path: text(m, godbus.FieldPath), iface: text(m, godbus.FieldInterface),
		member: text(m, godbus.FieldMember), signature: text(m, godbus.FieldSignature),
		serial: m.Serial(), body: m.Body, fds: fds,
		noReply:     m.Flags&godbus.FlagNoReplyExpected != 0,
		interactive: m.Flags&godbus.FlagAllowInteractiveAuthorization != 0,
	}
}

func text(m *godbus.Message, field godbus.HeaderField) string {
	switch v := m.Headers[field].Value().(type) {
	case string:
		return v
	case godbus.ObjectPath:
		return string(v)
	case godbus.Signature:
		return v.String()
	}
	return ""
}

// unreadable makes a call that is only to be answered with err. Its message
// has header fields at least.
func unreadable(message []byte, order binary.ByteOrder, err error) *call {
	return &call{
		sender: senderOf(message, order), serial: order.Uint32(message[8:]), err: err,
		noReply: godbus.Flags(message[2])&godbus.FlagNoReplyExpected != 0,
	}
}

// senderOf finds the sender in the header fields, without godbus: it is asked
// for messages that godbus does not decode. The bus has checked the fields,
// and puts the sender in.
func senderOf(message []byte, order binary.ByteOrder) string {
	end := min(len(message), fixedHeader+int(order.Uint32(message[12:])))
	for at := fixedHeader; at+8 <= end; at = (at + 7) &^ 7 {
		field, kind := godbus.HeaderField(message[at]), message[at+2]
		at += 4 // field, and the signature of one type
		var length int
		switch kind {
		case 's', 'o':
			if at+4 > end {
				return ""
			}
			length = int(order.Uint32(message[at:]))
			at += 4
		case 'g':
			length = int(message[at])
			at++
		case 'u':
			at += 4
			continue
		default:
			return ""
		}
		if length < 0 || at+length+1 > end {
			return ""
		}
		if field == godbus.FieldSender {
			return string(message[at : at+length])
		}
		at += length + 1
	}
	return ""
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
