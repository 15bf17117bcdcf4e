package tun

import (
	"encoding/binary"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The format is draft-ietf-opsawg-pcapng: blocks with their length at both
// ends, all in multiples of 4 bytes. It is written here since the libraries
// for it bring decoders of some hundred protocols along.
const (
	sectionBlock    = 0x0a0d0d0a
	interfaceBlock  = 1
	statisticsBlock = 5
	packetBlock     = 6

	byteOrderMagic = 0x1a2b3c4d
	linkTypeRaw    = 101 // an IPv4 or IPv6 packet, nothing before it
	snapLen        = 65535

	optionName      = 2 // of an interface
	optionFlags     = 2 // of a packet
	optionDropCount = 4 // of a packet: those missing before it
	optionReceived  = 4 // of statistics
	optionDropped   = 5 // of statistics

	// packetOverhead is what a packet's block has at most besides the packet.
	packetOverhead = 28 + 3 + 8 + 12 + 4 + 4
)

// direction is the epb_flags of a packet, as the host sees it.
type direction uint32

const (
	incoming direction = 1 // from the client
	outgoing direction = 2 // to the client
)

// appendHead begins a stream: the section and its one interface. Times are in
// microseconds, which is what holds where nothing is said.
func appendHead(b []byte, name string) []byte {
	b, start := begin(b, sectionBlock)
	b = binary.LittleEndian.AppendUint32(b, byteOrderMagic)
	b = binary.LittleEndian.AppendUint32(b, 1)          // version 1.0
	b = binary.LittleEndian.AppendUint64(b, ^uint64(0)) // of unknown length
	b = end(b, start)

	b, start = begin(b, interfaceBlock)
	b = binary.LittleEndian.AppendUint32(b, linkTypeRaw)
	b = binary.LittleEndian.AppendUint32(b, snapLen)
	b = binary.LittleEndian.AppendUint32(b, optionName|uint32(len(name))<<16)
	b = pad(append(b, name...))
	return end(endOptions(b), start)
}

// appendPacket appends the packet that lies in parts, behind skip bytes; lost
// are those that are missing since the last one.
func appendPacket(b []byte, now time.Time, d direction, lost uint64, skip int, parts []unix.Iovec) []byte {
	length := size(parts) - skip
	left := min(length, snapLen)
	b, start := begin(b, packetBlock)
	b = appendTime(binary.LittleEndian.AppendUint32(b, 0), now)
	b = binary.LittleEndian.AppendUint32(b, uint32(left))
	b = binary.LittleEndian.AppendUint32(b, uint32(length))
	for _, v := range parts {
		part := unsafe.Slice(v.Base, v.Len)
		n := min(skip, len(part))
		part, skip = part[n:], skip-n
		n = min(left, len(part))
		b, left = append(b, part[:n]...), left-n
	}
	b = pad(b)
	b = binary.LittleEndian.AppendUint32(b, optionFlags|4<<16)
	b = binary.LittleEndian.AppendUint32(b, uint32(d))
	if lost > 0 {
		b = appendCount(b, optionDropCount, lost)
	}
	return end(endOptions(b), start)
}

// appendStatistics appends how many packets there were, and how many of them
// are missing.
func appendStatistics(b []byte, now time.Time, received, dropped uint64) []byte {
	b, start := begin(b, statisticsBlock)
	b = appendTime(binary.LittleEndian.AppendUint32(b, 0), now)
	b = appendCount(b, optionReceived, received)
	b = appendCount(b, optionDropped, dropped)
	return end(endOptions(b), start)
}

// begin begins a block, the length of which end fills in.
func begin(b []byte, kind uint32) (_ []byte, start int) {
	start = len(b)
	b = binary.LittleEndian.AppendUint32(b, kind)
	return binary.LittleEndian.AppendUint32(b, 0), start
}

func end(b []byte, start int) []byte {
	length := uint32(len(b) - start + 4)
	binary.LittleEndian.PutUint32(b[start+4:], length)
	return binary.LittleEndian.AppendUint32(b, length)
}

func appendTime(b []byte, now time.Time) []byte {
	us := uint64(now.UnixMicro())
	b = binary.LittleEndian.AppendUint32(b, uint32(us>>32))
	return binary.LittleEndian.AppendUint32(b, uint32(us))
}

func appendCount(b []byte, option uint32, n uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(b, option|8<<16), n)
}

func endOptions(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, 0) }

// pad pads to 4 bytes, where the blocks before are so long.
func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// size returns how many bytes are in parts.
func size(parts []unix.Iovec) (n int) {
	for _, v := range parts {
		n += int(v.Len)
	}
	return n
}
