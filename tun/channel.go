package tun

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// Format is what the messages of a channel are.
type Format int

const (
	// FormatPacket has packets for messages.
	FormatPacket Format = iota

	// FormatOffload has a virtio_net_hdr in each message and behind it a packet
	// or super-packet, in all up to vnet.MaxMessage bytes. A client may send
	// super-packets that the TUN does not take: they are split here.
	FormatOffload

	// FormatStream has packets, each behind its length in 2 bytes in network
	// order, on a socket that keeps no bounds. A length of 0 is a breach of the
	// protocol.
	FormatStream
)

// socketType is what sockets of channels are.
func (f Format) socketType() int {
	if f == FormatStream {
		return unix.SOCK_STREAM
	}
	return unix.SOCK_SEQPACKET
}

// overhead is how many bytes are before the packet in a message.
func (f Format) overhead() int {
	switch f {
	case FormatOffload:
		return vnet.HeaderLen
	case FormatStream:
		return lengthSize
	case FormatPacket:
	}
	return 0
}

// offloadBuffer is the size in bytes of the send buffer of a channel of the
// format FormatOffload. A socket that was full is written again only when three
// quarters of it are free: what is left then must keep the reader busy until the
// writer has come. With half of this 4 to 9 % less passes, with twice no more.
const offloadBuffer = 1 << 20

// NewChannel makes a channel. Ours is for Tunnel.Attach, theirs for the
// client; both are nonblocking and closed on exec. The caller owns both.
//
// But for FormatOffload the send buffers keep their default size: bigger ones
// are slower and add delay.
func NewChannel(format Format) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, format.socketType()|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a channel: %w", os.NewSyscallError("socketpair", err))
	}
	ours, theirs = os.NewFile(uintptr(fds[0]), "channel"), os.NewFile(uintptr(fds[1]), "client channel")
	if format == FormatOffload {
		if err := errors.Join(enlarge(fds[0]), enlarge(fds[1])); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("cannot make a channel: %w", err), ours.Close(), theirs.Close())
		}
	}
	return ours, theirs, nil
}

// enlarge makes the send buffer of a socket large enough for super-packets.
func enlarge(fd int) error {
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil || size >= offloadBuffer {
		return os.NewSyscallError("getsockopt", err)
	}
	const half = offloadBuffer / 2 // the kernel doubles it
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, half) != nil {
		// No privilege: as much as everybody may have.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, half)
	}
	return os.NewSyscallError("setsockopt", err)
}

// CheckChannel tells whether f can serve as a channel of messages: a connected
// AF_UNIX SOCK_SEQPACKET socket. If not, the error says what it is. It leaves f
// as it is, and open.
//
// A datagram socket is refused: its end can be connected elsewhere by who
// holds it, and its reader does not see the peer close.
func CheckChannel(f *os.File) error { return checkChannel(f, FormatPacket) }

func checkChannel(f *os.File, format Format) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("cannot use the channel: %w", err)
	}
	var problem error
	if err := raw.Control(func(fd uintptr) { problem = checkSocket(int(fd), format.socketType()) }); err != nil {
		return fmt.Errorf("cannot use the channel: %w", err)
	}
	return problem
}

func checkSocket(fd, want int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if errors.Is(err, unix.ENOTSOCK) {
		return errors.New("the channel is not a socket")
	} else if err != nil {
		return fmt.Errorf("cannot use the channel: %w", os.NewSyscallError("getsockopt", err))
	}
	if domain != unix.AF_UNIX {
		return fmt.Errorf("the channel is a socket of address family %d, not AF_UNIX", domain)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("cannot use the channel: %w", os.NewSyscallError("getsockopt", err))
	}
	if kind != want {
		return fmt.Errorf("the channel is %s, not %s", describeSocket(kind), socketName(want))
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return errors.New("the channel is a socket that is not connected")
	}
	return nil
}

func socketName(kind int) string {
	if kind == unix.SOCK_STREAM {
		return "SOCK_STREAM"
	}
	return "SOCK_SEQPACKET"
}

func describeSocket(kind int) string {
	switch kind {
	case unix.SOCK_SEQPACKET:
		return "a SOCK_SEQPACKET socket"
	case unix.SOCK_STREAM:
		return "a stream socket"
	case unix.SOCK_DGRAM:
		return "a datagram socket"
	}
	return fmt.Sprintf("a socket of type %d", kind)
}

// channel is an attached channel. Its receiving goroutine takes it off the
// tunnel when it finds the end of file, or the file closed.
type channel struct {
	file   *os.File
	raw    syscall.RawConn
	format Format

	// failure is why the sending direction ended it, if that was first.
	failure atomic.Pointer[error]

	// done is closed once the tunnel's channel is this one no more.
	done chan struct{}
}

// newChannel takes f over and closes it. The channel has a duplicate that is
// certain to be nonblocking and known to Go's poller, whatever f was.
func newChannel(f *os.File, format Format) (*channel, error) {
	defer f.Close()
	if err := checkChannel(f, format); err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("cannot use the channel: %w", err)
	}
	var file *os.File
	var problem error
	err = raw.Control(func(fd uintptr) {
		own, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			problem = os.NewSyscallError("fcntl", err)
			return
		}
		problem = os.NewSyscallError("fcntl", unix.SetNonblock(own, true))
		if format == FormatOffload {
			problem = errors.Join(problem, enlarge(own))
		}
		file = os.NewFile(uintptr(own), "channel")
	})
	if err = errors.Join(err, problem); err == nil {
		raw, err = file.SyscallConn()
	}
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, fmt.Errorf("cannot use the channel: %w", err)
	}
	return &channel{file: file, raw: raw, format: format, done: make(chan struct{})}, nil
}

// fail ends the channel because of err. What the client sent before is still
// received; then the receiving goroutine finds the end of file.
func (c *channel) fail(err error) {
	c.failure.CompareAndSwap(nil, &err)
	// An error means that the channel is closed or at its end already.
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
}

// close ends the channel for the client, too, where another process has a copy
// of our end.
func (c *channel) close() {
	// An error means that it is closed already.
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	c.file.Close()
}

// is says whether both are the same socket.
func (c *channel) is(other *channel) bool {
	mine, err := c.cookie()
	theirs, otherErr := other.cookie()
	return err == nil && otherErr == nil && mine == theirs
}

// cookie is the kernel's number of the socket.
func (c *channel) cookie() (cookie uint64, err error) {
	var problem error
	err = c.raw.Control(func(fd uintptr) {
		cookie, problem = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
	})
	return cookie, errors.Join(err, problem)
}
