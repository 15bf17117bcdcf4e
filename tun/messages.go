package tun

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// messages is the memory of one batch: slots of equal size, and the vectors
// with which sendmmsg and recvmmsg move them in one system call. It belongs
// to one goroutine.
type messages struct {
	size    int // of a slot
	arena   []byte
	headers []unix.Mmsghdr
	vectors []unix.Iovec
}

// slotSize returns how big slots must be for packets of up to mtu bytes: one
// more, to tell when a packet was longer.
func slotSize(mtu int) int { return max(2048, mtu+1) }

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

func (m *messages) slot(i int) []byte { return m.arena[i*m.size : (i+1)*m.size] }

// setLen fixes what send sends of slot i.
func (m *messages) setLen(i, n int) { m.vectors[i].SetLen(n) }

// sendable returns what send sends of slot i.
func (m *messages) sendable(i int) []byte {
	return m.arena[i*m.size:][:m.vectors[i].Len]
}

// received returns what receive put into slot i and whether there was more.
func (m *messages) received(i int) (packet []byte, truncated bool) {
	h := &m.headers[i]
	return m.arena[i*m.size:][:h.Len], h.Hdr.Flags&unix.MSG_TRUNC != 0
}

// send sends the slots from..to-1 and returns how many the socket took. It
// never blocks, whatever the client did to the descriptor's flags.
func (m *messages) send(fd uintptr, from, to int) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&m.headers[from])),
			uintptr(to-from), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
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

// writeFrame writes one frame to a nonblocking TUN.
func writeFrame(fd uintptr, b []byte) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return errno
		}
	}
}
