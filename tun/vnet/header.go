package vnet

import "encoding/binary"

const (
	// HeaderLen is the length in bytes of a virtio_net_hdr.
	HeaderLen = 10

	// MaxMessage is the length in bytes of the longest message.
	MaxMessage = HeaderLen + 1<<16
)

// Offload says which super-packets somebody takes.
type Offload int

// From none to all.
const (
	NoOffload  Offload = iota // and messages have no Header
	OffloadTCP                // as all kernels
	OffloadAll                // also UDP, as kernels since 6.2
)

// Flags and types of a Header, as Linux has them.
const (
	NeedsChecksum = 1 // the checksum field holds the sum of the pseudo header
	DataValid     = 2 // somebody has verified the checksum

	None = 0
	TCP4 = 1
	TCP6 = 4
	UDP  = 5    // of either family
	ECN  = 0x80 // added to TCP4 or TCP6: the first packet has CWR
)

// Header is a virtio_net_hdr, as it is before a packet in the byte order of
// the host.
type Header struct {
	Flags   byte
	GSOType byte

	// HeadersLen is a hint at how many bytes the headers of the packet have.
	// The kernel says more when it has more in one piece.
	HeadersLen uint16

	SegmentSize    uint16 // bytes of payload in each packet of a super-packet
	ChecksumStart  uint16 // where NeedsChecksum sums from
	ChecksumOffset uint16 // from there, where the sum goes
}

// Decode reads a header from the first HeaderLen bytes of b.
func Decode(b []byte) Header {
	_ = b[HeaderLen-1]
	return Header{
		Flags:          b[0],
		GSOType:        b[1],
		HeadersLen:     binary.NativeEndian.Uint16(b[2:]),
		SegmentSize:    binary.NativeEndian.Uint16(b[4:]),
		ChecksumStart:  binary.NativeEndian.Uint16(b[6:]),
		ChecksumOffset: binary.NativeEndian.Uint16(b[8:]),
	}
}

// Encode writes the header into the first HeaderLen bytes of b.
func (h Header) Encode(b []byte) {
	_ = b[HeaderLen-1]
	b[0], b[1] = h.Flags, h.GSOType
	binary.NativeEndian.PutUint16(b[2:], h.HeadersLen)
	binary.NativeEndian.PutUint16(b[4:], h.SegmentSize)
	binary.NativeEndian.PutUint16(b[6:], h.ChecksumStart)
	binary.NativeEndian.PutUint16(b[8:], h.ChecksumOffset)
}
