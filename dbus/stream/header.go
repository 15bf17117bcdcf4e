package stream

import (
	"encoding/binary"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
)

// fixedHeader is what a message begins with: byte order, type, flags, version,
// body length, serial and the length of the header fields.
const fixedHeader = 16

// Header is what a message says of itself. It is read without godbus, so that
// a message can be refused before its body was decoded: bodies are the sender's,
// and some take twenty times their length, and milliseconds, to decode.
type Header struct {
	Type   godbus.Type
	Flags  godbus.Flags
	Serial uint32

	// Sender is what the bus says, which nobody can forge. Texts that are not
	// there are empty, and so are those that are longer than any message may be
	// that is of use.
	Sender, Path, Interface, Member, Signature string

	order        binary.ByteOrder
	body, fields int // bytes; fields with their padding
	replySerial  uint32
	plain        bool // there are no fields but those of the specification
}

// maxText is the length of the longest text that is of use: a path can be as
// long as a message.
const maxText = 1 << 20

// ours says whether it answers a question of Ask or Ping.
func (h *Header) ours() bool {
	return (h.Type == godbus.TypeMethodReply || h.Type == godbus.TypeError) && h.replySerial&askedSerial != 0
}

// readFixed reads the fixed part.
func readFixed(b []byte) (h Header, err error) {
	switch b[0] {
	case 'l':
		h.order = binary.LittleEndian
	case 'B':
		h.order = binary.BigEndian
	default:
		return h, fmt.Errorf("the bus sent a message of byte order %q", b[0])
	}
	h.Type, h.Flags, h.Serial = godbus.Type(b[1]), godbus.Flags(b[2]), h.order.Uint32(b[8:])
	body, fields := uint64(h.order.Uint32(b[4:])), (uint64(h.order.Uint32(b[12:]))+7)&^7
	if body+fields+fixedHeader > maxMessage {
		return h, fmt.Errorf("the bus sent a message of %d bytes", body+fields+fixedHeader)
	}
	h.body, h.fields = int(body), int(fields)
	return h, nil
}

// readFields reads the fields. The bus has checked those that it knows, and
// puts the sender in. What comes behind a field of a type that the
// specification has no field of is not read: nobody sends such but to try.
func (h *Header) readFields(b []byte) {
	known := true
	for at := 0; at+8 <= len(b); at = (at + 7) &^ 7 {
		field, kind := godbus.HeaderField(b[at]), b[at+2]
		if b[at+1] != 1 {
			return
		}
		known = known && field >= godbus.FieldPath && field <= godbus.FieldUnixFDs
		at += 4 // field, and the signature of one type
		length := 0
		switch kind {
		case 'u':
			if field == godbus.FieldReplySerial {
				h.replySerial = h.order.Uint32(b[at:])
			}
			at += 4
			continue
		case 's', 'o':
			length = int(h.order.Uint32(b[at:]))
			at += 4
		case 'g':
			length = int(b[at])
			at++
		default:
			return
		}
		if length < 0 || length >= len(b)-at {
			return
		}
		if length <= maxText {
			h.setText(field, string(b[at:at+length]))
		}
		at += length + 1
	}
	h.plain = known
}

func (h *Header) setText(field godbus.HeaderField, text string) {
	switch field {
	case godbus.FieldPath:
		h.Path = text
	case godbus.FieldInterface:
		h.Interface = text
	case godbus.FieldMember:
		h.Member = text
	case godbus.FieldSender:
		h.Sender = text
	case godbus.FieldSignature:
		h.Signature = text
	default: // of answers, or for the bus
	}
}
