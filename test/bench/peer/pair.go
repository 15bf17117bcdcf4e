package main

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/bench"
)

// messages moves many messages of a socket with one system call, as the daemon
// and the client library do, and nothing else.
type messages struct {
	slots   [batchSize][]byte
	headers [batchSize]unix.Mmsghdr
	vectors [batchSize]unix.Iovec
}

func newMessages(size int) *messages {
	m := &messages{}
	for i := range m.slots {
		m.slots[i] = make([]byte, size)
		m.vectors[i].Base = &m.slots[i][0]
		m.vectors[i].SetLen(size)
		m.headers[i].Hdr.Iov = &m.vectors[i]
		m.headers[i].Hdr.SetIovlen(1)
	}
	return m
}

// move waits until the system call has moved some of the n messages from the
// first on.
func (m *messages) move(wait func(func(uintptr) bool) error, trap uintptr, first, n int) (moved int, err error) {
	var errno syscall.Errno
	err = wait(func(fd uintptr) bool {
		got, _, e := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(&m.headers[first])), uintptr(n), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		moved, errno = int(got), e
		return errno != unix.EAGAIN
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return moved, err
}

// segments is how many packets one super-packet makes, which travel together.
const segments = 45

// push sends numbered messages of o.size bytes for o.time, and stays until they
// are counted.
func push(o options) (r bench.Result, err error) {
	raw, err := socket()
	if err != nil {
		return r, err
	}
	m := newMessages(o.size)
	for start := time.Now(); time.Since(start) < o.time; {
		for i := range segments {
			binary.BigEndian.PutUint64(m.slots[i], r.Packets+uint64(i))
		}
		for sent := 0; sent < segments; {
			n, err := m.move(raw.Write, unix.SYS_SENDMMSG, sent, segments-sent)
			if err != nil {
				return r, err
			}
			sent += n
		}
		r.Packets += segments
	}
	if err := unix.Shutdown(firstFile, unix.SHUT_WR); err != nil {
		return r, err
	}
	_, err = m.move(raw.Read, unix.SYS_RECVMMSG, 0, 1)
	return r, err
}

// pull counts messages from the first to the end.
func pull(o options) (r bench.Result, err error) {
	raw, err := socket()
	if err != nil {
		return r, err
	}
	m := newMessages(o.size)
	usage, err := bench.StartUsage(o.pids, nil)
	if err != nil {
		return r, err
	}
	for {
		n, err := m.move(raw.Read, unix.SYS_RECVMMSG, 0, batchSize)
		if err != nil {
			return r, err
		}
		for i := range n {
			switch m.headers[i].Len {
			case uint32(o.size):
			case 0:
				return r, usage.Stop(&r)
			default:
				return r, fmt.Errorf("a message of %d bytes came", m.headers[i].Len)
			}
			if got := binary.BigEndian.Uint64(m.slots[i]); got != r.Packets {
				return r, fmt.Errorf("message %d came in place of %d", got, r.Packets)
			}
			r.Packets++
		}
	}
}

func socket() (syscall.RawConn, error) {
	file, err := inherited(firstFile)
	if err != nil {
		return nil, err
	}
	return file.SyscallConn()
}
