package dbus

import (
	"encoding/binary"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
)

// fixedHeader is what a message begins with: byte order, type, flags, version,
// body length, serial and the length of the header fields.
const fixedHeader = 16

// header is what a message says of itself. It is read without godbus, so that
// a call can be refused before its body was decoded: bodies are the sender's,
// and some take twenty times their length, and milliseconds, to decode.
type header struct {
	order        binary.ByteOrder
	kind         godbus.Type
	flags        godbus.Flags
	serial       uint32
	body, fields int // bytes; fields with their padding

	path, iface, member, sender, signature string

	replySerial uint32
}

// readFixed reads the fixed part.
func readFixed(b []byte) (h header, err error) {
	switch b[0] {
	case 'l':
		h.order = binary.LittleEndian
	case 'B':
		h.order = binary.BigEndian
	default:
		return h, fmt.Errorf("the bus sent a message of byte order %q", b[0])
	}
	h.kind, h.flags, h.serial = godbus.Type(b[1]), godbus.Flags(b[2]), h.order.Uint32(b[8:])
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
func (h *header) readFields(b []byte) {
	for at := 0; at+8 <= len(b); at = (at + 7) &^ 7 {
		field, kind := godbus.HeaderField(b[at]), b[at+2]
		if b[at+1] != 1 {
			return
		}
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
		h.setText(field, string(b[at:at+length]))
		at += length + 1
	}
}

func (h *header) setText(field godbus.HeaderField, text string) {
	switch field {
	case godbus.FieldPath:
		h.path = text
	case godbus.FieldInterface:
		h.iface = text
	case godbus.FieldMember:
		h.member = text
	case godbus.FieldSender:
		h.sender = text
	case godbus.FieldSignature:
		h.signature = text
	default: // of answers, or for the bus
	}
}
