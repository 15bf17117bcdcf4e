package main

import (
	"io"
	"slices"
	"sync/atomic"
	"time"
)

// flow is what went through the tunnel.
type flow struct {
	packets [2]atomic.Int64 // IPv4 and IPv6
	gap     atomic.Int64    // nanoseconds, the longest between two packets
}

// serve sends every UDP packet that comes out of the tunnel back to its sender,
// and counts.
func (f *flow) serve(channel io.ReadWriter) error {
	b := make([]byte, 1<<16)
	var last time.Time
	for {
		n, err := channel.Read(b)
		if err != nil {
			return err
		}
		family, back := turn(b[:n])
		if back == nil {
			continue
		}
		now := time.Now()
		if gap := int64(now.Sub(last)); !last.IsZero() && gap > f.gap.Load() {
			f.gap.Store(gap)
		}
		last = now
		f.packets[family].Add(1)
		if _, err := channel.Write(back); err != nil {
			return err
		}
	}
}

// turn exchanges source and destination of a UDP packet, which no checksum
// notices. It gives nil for others.
func turn(p []byte) (family int, back []byte) {
	const udp = 17
	at, size, header := 12, 4, 20
	if len(p) > 0 && p[0]>>4 == 6 {
		family, at, size, header = 1, 8, 16, 40
	}
	protocol := 9 - 3*family
	if len(p) < header+8 || family == 0 && p[0] != 0x45 || p[protocol] != udp {
		return 0, nil
	}
	back = slices.Clone(p)
	copy(back[at:], p[at+size:at+2*size])
	copy(back[at+size:], p[at:at+size])
	copy(back[header:], p[header+2:header+4])
	copy(back[header+2:], p[header:header+2])
	return family, back
}
