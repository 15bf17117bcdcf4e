package tun

import (
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

const (
	// burst is how many frames are read from the TUN before they are sent on:
	// enough to share the cost of a send, few enough to add no delay.
	burst = 16

	// smallFrame is the length in bytes up to which a frame leaves the burst
	// open. A super-packet is a burst of its own.
	smallFrame = 2048

	// longestFrame is one byte more than a frame can have, to tell.
	longestFrame = vnet.MaxMessage + 1
)

// frames is a burst of frames from the TUN. It belongs to one goroutine.
type frames struct {
	header  bool // the TUN puts a virtio_net_hdr before each packet
	packets [burst]vnet.Packet
	count   int
	arena   []byte
	used    int // of arena
}

func newFrames(offload vnet.Offload) *frames {
	return &frames{
		header: offload != vnet.NoOffload,
		arena:  make([]byte, burst*(vnet.HeaderLen+smallFrame)+longestFrame),
	}
}

func (f *frames) reset() { f.count, f.used = 0, 0 }

// read reads one frame behind those that were kept and returns it as a message,
// with a virtio_net_hdr in any case. The end of the TUN is ENODEV.
func (f *frames) read(fd uintptr) (message []byte, errno unix.Errno) {
	b, head := f.arena[f.used:][:longestFrame], 0
	if !f.header {
		head = vnet.HeaderLen
		clear(b[:head])
	}
	n, errno := readFrame(fd, b[head:])
	switch {
	case errno != 0:
		return nil, errno
	case n == 0:
		return nil, unix.ENODEV
	}
	return b[:head+n], 0
}

// next is where the packet of the message that was read last goes.
func (f *frames) next() *vnet.Packet { return &f.packets[f.count] }

// keep keeps the next packet. It returns whether there is room for one more.
func (f *frames) keep() bool {
	n := len(f.packets[f.count].Bytes())
	f.count++
	f.used += vnet.HeaderLen + n
	return f.count < burst && n <= smallFrame
}
