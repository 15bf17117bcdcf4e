package client

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxBatch is the most messages that one system call moves.
const maxBatch = 128

// endOfFile is the size that receive gives for an empty message.
const endOfFile = -1

var errEmptyPacket = errors.New("cannot send an empty packet")

// mmsghdr is struct mmsghdr of recvmmsg(2): Go pads it as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// batch moves many messages of a socket with one system call, in one
// direction. Callers take turns. What the system calls need is allocated once,
// the closure for Go's poller included.
type batch struct {
	mu   sync.Mutex
	wait func(func(fd uintptr) bool) error // calls try whenever the socket is ready
	try  func(fd uintptr) bool             // one attempt; false: wait

	headers [maxBatch]mmsghdr
	vectors [maxBatch]unix.Iovec
	from    int
	want    int
	got     int
	errno   syscall.Errno
}

// openBatches takes over fd, a socket of messages, and puts it on Go's poller.
// Nothing is ever received besides the bytes: without a control buffer the
// kernel closes descriptors that the peer attached.
func openBatches(fd int, name string) (file *os.File, rx, tx *batch, err error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, nil, nil, os.NewSyscallError("fcntl", err)
	}
	file = os.NewFile(uintptr(fd), name)
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, nil, nil, err
	}
	return file, newBatch(raw.Read, unix.SYS_RECVMMSG, unix.MSG_DONTWAIT),
		newBatch(raw.Write, unix.SYS_SENDMMSG, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL), nil
}

// newBatch prepares for the system call trap. MSG_DONTWAIT is among the flags
// because the peer can clear O_NONBLOCK on a descriptor that it shares.
func newBatch(wait func(func(uintptr) bool) error, trap, flags uintptr) *batch {
	b := &batch{wait: wait}
	for i := range b.headers {
		b.headers[i].hdr.Iov = &b.vectors[i]
		b.headers[i].hdr.SetIovlen(1)
	}
	b.try = func(fd uintptr) bool {
		for {
			n, _, errno := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(&b.headers[b.from])), uintptr(b.want), flags, 0, 0)
			if errno == syscall.EINTR {
				continue
			}
			b.got, b.errno = int(n), errno
			return errno != syscall.EAGAIN
		}
	}
	return b
}

// run waits until at least one of the first prepared messages has moved.
func (b *batch) run(want int) (int, error) { return b.runFrom(0, want) }

// runFrom is run for the prepared messages from..to-1.
func (b *batch) runFrom(from, to int) (int, error) {
	b.from, b.want, b.got, b.errno = from, to-from, 0, 0
	if err := b.wait(b.try); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, b.errno
	}
	return b.got, nil
}

func (b *batch) prepare(i int, p []byte) {
	b.vectors[i].Base = unsafe.SliceData(p)
	b.vectors[i].SetLen(len(p))
	b.headers[i].hdr.Flags = 0
}

// receive fills bufs with messages and sizes with their lengths: 0 where a
// message was longer than its buffer, endOfFile where it was empty.
func (b *batch) receive(bufs [][]byte, sizes []int) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	want := min(len(bufs), len(sizes), maxBatch)
	if want == 0 {
		return 0, io.ErrShortBuffer
	}
	for i, p := range bufs[:want] {
		if len(p) == 0 {
			return 0, io.ErrShortBuffer
		}
		b.prepare(i, p)
	}
	n, err := b.run(want)
	if errors.Is(err, unix.ECONNRESET) {
		// The peer closed without reading all. That is told once, before
		// the messages that are still here.
		n, err = b.run(want)
	}
	for i := range n {
		switch h := &b.headers[i]; {
		case h.hdr.Flags&unix.MSG_TRUNC != 0:
			sizes[i] = 0
		case h.len == 0:
			sizes[i] = endOfFile
		default:
			sizes[i] = int(h.len)
		}
	}
	return n, err
}

// send sends all packets, waiting for room in the socket.
func (b *batch) send(packets [][]byte) (sent int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for sent < len(packets) {
		want := min(len(packets)-sent, maxBatch)
		for i, p := range packets[sent : sent+want] {
			if len(p) == 0 {
				if i == 0 {
					return sent, fmt.Errorf("packet %d: %w", sent, errEmptyPacket)
				}
				want = i
				break
			}
			b.prepare(i, p)
		}
		n, err := b.run(want)
		sent += n
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}
