package vnet

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum comes out right in either byte order, as long as it is
// one throughout. The sums here are of the words as this machine reads them,
// so that none has to be swapped.

// sum adds the words of b to a sum.
func sum(b []byte, to uint64) uint64 {
	var carry uint64
	for len(b) >= 64 {
		to, carry = bits.Add64(to, binary.NativeEndian.Uint64(b), 0)
		to, carry = bits.Add64(to, binary.NativeEndian.Uint64(b[8:]), carry)
		to, carry = bits.Add64(to, binary.NativeEndian.Uint64(b[16:]), carry)
		to, carry = bits.Add64(to, binary.NativeEndian.Uint64(b[24:]), carry)
		to, carry = bits.Add64(to, binary.NativeEndian.Uint64(b[32:]), carry)
		to, carry = bits.Add64(to, binary.NativeEndian.Uint64(b[40:]), carry)
		to, carry = bits.Add64(to, binary.NativeEndian.Uint64(b[48:]), carry)
		to, carry = bits.Add64(to, binary.NativeEndian.Uint64(b[56:]), carry)
		to += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		to, carry = bits.Add64(to, binary.NativeEndian.Uint64(b), 0)
		to += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		to, carry = bits.Add64(to, binary.NativeEndian.Uint64(rest[:]), 0)
		to += carry
	}
	return to
}

// word is the number v, which is in network byte order in a packet, as a word
// of a sum.
func word(v int) uint64 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], uint16(v))
	return uint64(binary.NativeEndian.Uint16(b[:]))
}

// add adds two sums.
func add(a, b uint64) uint64 {
	s, carry := bits.Add64(a, b, 0)
	return s + carry
}

// fold makes 16 bits of a sum.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// put writes a folded sum into a packet.
func put(b []byte, sum uint16) { binary.NativeEndian.PutUint16(b, sum) }
