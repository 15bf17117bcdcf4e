package tun

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// messages is the memory of what is received in one system call: slots of
// equal size. It belongs to one goroutine.
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

// received returns what receive put into slot i and whether there was more.
func (m *messages) received(i int) (message []byte, truncated bool) {
	h := &m.headers[i]
	return m.arena[i*m.size:][:h.Len], h.Hdr.Flags&unix.MSG_TRUNC != 0
}

// receive fills slots from the first on and returns how many; slots without
// bytes stand for the end of file, too. Descriptors that come with a message
// are closed by the kernel, since there is no room for them. It never blocks.
//
// A peer that closed before it had read all is told once, as ECONNRESET, and
// ahead of what it had sent; the end of file comes after that.
func (m *messages) receive(fd uintptr) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&m.headers[0])),
			uintptr(len(m.headers)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR && errno != unix.ECONNRESET {
			return int(n), errno
		}
	}
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
