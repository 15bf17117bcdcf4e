package tun

import "sync/atomic"

// counters are the statistics of one tunnel. Each field may be added to and
// read at any time; together they are no consistent snapshot.
type counters struct {
	txPackets, txBytes atomic.Uint64 // host → client

	// The two directions run on different processors; keep what they write
	// out of each other's cache line.
	_ [64]byte

	rxPackets, rxBytes atomic.Uint64 // client → host

	dropped [reasons]atomic.Uint64
}

func (c *counters) drop(r reason, packets int) { c.dropped[r].Add(uint64(packets)) }

func (c *counters) received(packets, bytes int) {
	c.rxPackets.Add(uint64(packets))
	c.rxBytes.Add(uint64(bytes))
}

func (c *counters) sent(packets, bytes int) {
	c.txPackets.Add(uint64(packets))
	c.txBytes.Add(uint64(bytes))
}

// snapshot has every name, also of what was never counted.
func (c *counters) snapshot() map[string]uint64 {
	s := map[string]uint64{
		"txPackets": c.txPackets.Load(),
		"txBytes":   c.txBytes.Load(),
		"rxPackets": c.rxPackets.Load(),
		"rxBytes":   c.rxBytes.Load(),
	}
	for r := pass + 1; r < reasons; r++ {
		s["dropped."+r.String()] = c.dropped[r].Load()
	}
	return s
}
