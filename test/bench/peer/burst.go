package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

const (
	// burst is how many small packets are read before they are sent on.
	burst = 16

	// packetSize is the room for a packet.
	packetSize = 2048
)

// bursts is a TUN with super-packets, of which many packets are read, and to
// which many are written, in one go: where wireguard-go's sends on each small
// packet by itself. Read and Write each have one caller.
type bursts struct {
	raw syscall.RawConn

	frame  []byte
	packet vnet.Packet
	left   int // segments of packet that were not yet read

	merged  *vnet.Coalescer
	vectors []unix.Iovec
}

func burstDevice(fd int) (*bursts, error) {
	file, err := inherited(fd)
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	return &bursts{
		raw:     raw,
		frame:   make([]byte, largest+1),
		merged:  vnet.NewCoalescer(batchSize, vnet.OffloadAll),
		vectors: make([]unix.Iovec, 0, 1+batchSize),
	}, err
}

func (d *bursts) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	var errno syscall.Errno
	err = d.raw.Read(func(fd uintptr) bool {
		n, errno = d.fill(fd, bufs, sizes, offset)
		return n > 0 || errno != unix.EAGAIN
	})
	if err == nil && n == 0 {
		err = errno
	}
	return n, err
}

// fill reads packets until there are no more, or the burst is complete, of which
// a super-packet is one.
func (d *bursts) fill(fd uintptr, bufs [][]byte, sizes []int, offset int) (n int, errno syscall.Errno) {
	for n < len(bufs) {
		if d.left == 0 {
			if n >= burst || n > 0 && d.packet.Super() {
				return n, 0
			}
			got, _, errno := syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&d.frame[0])), uintptr(len(d.frame)))
			if errno != 0 {
				return n, errno
			}
			if d.packet.Parse(d.frame[:got]) != nil {
				continue // no kernel sends that
			}
			d.packet.Complete()
			d.left = d.packet.Segments()
		}
		sizes[n] = d.segment(bufs[n][offset:])
		d.left--
		n++
	}
	return n, 0
}

// segment copies the first packet that is left.
func (d *bursts) segment(to []byte) int {
	if !d.packet.Super() {
		return copy(to, d.packet.Bytes())
	}
	payload := d.packet.Segment(d.packet.Segments()-d.left, to)
	return d.packet.HeadersLen() + copy(to[d.packet.HeadersLen():], payload)
}

// Write writes all that it can. The error is that of the last that it could not.
func (d *bursts) Write(bufs [][]byte, offset int) (n int, err error) {
	d.merged.Reset()
	for _, b := range bufs {
		d.merged.Add(b[offset:])
	}
	for i := range d.merged.Groups() {
		d.vectors = d.merged.Vectors(i, d.vectors[:0])
		if problem := d.writeFrame(); problem != nil {
			err = problem
			continue
		}
		packets, _ := d.merged.Group(i)
		n += packets
	}
	return n, err
}

func (d *bursts) writeFrame() error {
	var errno syscall.Errno
	err := d.raw.Write(func(fd uintptr) bool {
		_, _, errno = syscall.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&d.vectors[0])), uintptr(len(d.vectors)))
		return errno != unix.EAGAIN
	})
	if err != nil || errno == 0 {
		return err
	}
	return errno
}

var _ batches = (*bursts)(nil)
