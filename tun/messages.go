package tun

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

var errEmpty = errors.New("the client sent a message without a packet")

// intake is the memory of what is received at once. It belongs to one
// goroutine.
type intake interface {
	// fit makes room for packets of up to mtu bytes. What was received is gone.
	fit(mtu int)

	// receive takes what the socket has, and returns how many messages that
	// are, and why there are none after them. Neither: nothing yet. It never
	// blocks, and descriptors that come along are closed by the kernel, since
	// there is no room for them.
	receive(fd uintptr) (got int, end error)

	// received returns message i of those, and whether there was more of it. It
	// stays as it is until the next receive.
	received(i int) (message []byte, truncated bool)
}

// messages is the intake of sockets that keep the bounds of messages: slots of
// equal size.
type messages struct {
	size    int // of a slot
	arena   []byte
	headers []unix.Mmsghdr
	vectors []unix.Iovec
}

// newMessages makes count slots of size bytes.
func newMessages(count, size int) *messages {
	m := &messages{
		size:    size,
		arena:   make([]byte, count*size),
		headers: make([]unix.Mmsghdr, count),
		vectors: make([]unix.Iovec, count),
	}
	for i := range m.headers {
		m.vectors[i].Base = &m.arena[i*size]
		m.vectors[i].SetLen(size)
		m.headers[i].Hdr.Iov = &m.vectors[i]
		m.headers[i].Hdr.SetIovlen(1)
	}
	return m
}

// slotSize returns how big slots must be for packets of up to mtu bytes: one
// more, to tell when a packet was longer.
func slotSize(mtu int) int { return max(2048, mtu+1) }

func newBatch(mtu int) *messages {
	size := slotSize(mtu)
	return newMessages(min(Batch, batchBytes/size), size)
}

func (m *messages) fit(mtu int) {
	if slotSize(mtu) > m.size {
		*m = *newBatch(mtu)
	}
}

func (m *messages) received(i int) (message []byte, truncated bool) {
	h := &m.headers[i]
	return m.arena[i*m.size:][:h.Len], h.Hdr.Flags&unix.MSG_TRUNC != 0
}

func (m *messages) receive(fd uintptr) (got int, end error) {
	n, errno := m.fill(fd)
	switch errno {
	case 0:
	case unix.EAGAIN:
		return 0, nil
	default:
		return 0, fmt.Errorf("cannot receive from the client: %w", os.NewSyscallError("recvmmsg", errno))
	}
	// The end of file looks like a message without bytes.
	for i := range n {
		if m.headers[i].Len == 0 {
			return i, endOf(fd)
		}
	}
	return n, nil
}

// fill fills slots from the first on and returns how many.
//
// A peer that closed before it had read all is told once, as ECONNRESET, and
// ahead of what it had sent; the end of file comes after that.
func (m *messages) fill(fd uintptr) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&m.headers[0])),
			uintptr(len(m.headers)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR && errno != unix.ECONNRESET {
			return int(n), errno
		}
	}
}

// endOf tells the end of the channel from the empty message of a client that
// breaks the protocol.
func endOf(fd uintptr) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if n, err := unix.Poll(fds, 0); err == nil && n > 0 {
		return io.EOF
	}
	return errEmpty
}

// gathered is what is sent in one system call: messages whose parts lie
// anywhere. It belongs to one goroutine.
type gathered struct {
	count   int
	headers [Batch]unix.Mmsghdr
	vectors [2 * Batch]unix.Iovec
	used    int // of room

	// room is for headers that are made here. Even the longest, which have all
	// extension headers that IPv6 allows us to pass over, fit.
	room [128 * Batch]byte
}

func (g *gathered) reset() { g.count, g.used = 0, 0 }

// full tells whether there is no place for one more message that needs size
// bytes of room.
func (g *gathered) full(size int) bool { return g.count == Batch || g.used+size > len(g.room) }

// reserve returns size bytes of room.
func (g *gathered) reserve(size int) []byte {
	b := g.room[g.used:][:size:size]
	g.used += size
	return b
}

// add appends a message of two parts, the first of which may be missing.
func (g *gathered) add(head, rest []byte) {
	v := g.vectors[2*g.count:][:2]
	n := 0
	for _, part := range [2][]byte{head, rest} {
		if len(part) > 0 {
			v[n].Base = unsafe.SliceData(part)
			v[n].SetLen(len(part))
			n++
		}
	}
	if n < len(v) {
		v[n] = unix.Iovec{}
	}
	h := &g.headers[g.count].Hdr
	h.Iov = &v[0]
	h.SetIovlen(n)
	g.count++
}

// parts are those of message i.
func (g *gathered) parts(i int) []unix.Iovec {
	return g.vectors[2*i:][:g.headers[i].Hdr.Iovlen]
}

// send sends the messages from i on and returns how many the socket took. It
// never blocks, whatever the client did to the descriptor's flags.
func (g *gathered) send(fd uintptr, i int) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&g.headers[i])),
			uintptr(g.count-i), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// readFrame reads one frame from a nonblocking TUN. A frame that is longer
// than b is cut.
func readFrame(fd uintptr, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// writeFrame writes one frame to a nonblocking TUN. It has at least one part.
func writeFrame(fd uintptr, parts []unix.Iovec) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&parts[0])), uintptr(len(parts)))
		if errno != unix.EINTR {
			return errno
		}
	}
}
