package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// FuzzPacketStream cuts a stream that comes in any pieces. The packets must be those
// that a simple reader of the whole finds, and a length of 0 ends both.
func FuzzPacketStream(f *testing.F) {
	f.Add([]byte{0, 1, 0x45, 0, 2, 1, 2, 0, 0, 9}, []byte{1, 3})
	f.Add(append([]byte{0x08, 0x00}, make([]byte, 3000)...), []byte{255})
	f.Add(bytes.Repeat([]byte{0, 1, 7}, 500), []byte{})
	f.Fuzz(func(t *testing.T, data, pieces []byte) {
		var want [][]byte
		breach := false
		for rest := data; len(rest) >= 2; {
			n := int(binary.BigEndian.Uint16(rest))
			if breach = n == 0; breach || len(rest) < 2+n {
				break
			}
			want, rest = append(want, rest[2:2+n]), rest[2+n:]
		}
		s := newStream()
		next, ended := 0, false
		for i := 0; !ended; i++ {
			got, end := s.cut()
			for k := range got {
				packet, truncated := s.received(k)
				if next >= len(want) || truncated || !bytes.Equal(packet, want[next]) {
					t.Fatalf("packet %d is %.50x", next, packet)
				}
				next++
			}
			if end != nil && !errors.Is(end, errEmpty) {
				t.Fatal(end)
			}
			ended = end != nil || got == 0 && len(data) == 0
			if ended && (end != nil) != breach {
				t.Fatalf("it ended with %v", end)
			}
			if got > 0 || ended {
				continue
			}
			room := s.room()
			if len(room) == 0 {
				t.Fatal("there is no room")
			}
			n := len(data)
			if len(pieces) > 0 {
				n = min(n, 1+int(pieces[i%len(pieces)])*8)
			}
			n = copy(room, data[:n])
			s.end, data = s.end+n, data[n:]
		}
		if next != len(want) {
			t.Fatalf("%d packets, want %d", next, len(want))
		}
	})
}
