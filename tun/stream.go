package tun

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// lengthSize is the size in bytes of the length before each packet of a
	// stream.
	lengthSize = 2

	// streamBuffer is how many bytes are received from a stream at once. The
	// longest packet and the beginning of the next must fit.
	streamBuffer = 1 << 17
)

func putLength(b []byte, n int) { binary.BigEndian.PutUint16(b, uint16(n)) }

// stream is the intake of sockets that keep no bounds of messages: packets come
// behind their lengths, and in pieces.
type stream struct {
	buffer     []byte
	begin, end int // in buffer: what no packet was made of yet
	packets    [Batch][]byte
}

func newStream() *stream { return &stream{buffer: make([]byte, streamBuffer)} }

// fit: every packet that there can be fits.
func (s *stream) fit(int) {}

func (s *stream) received(i int) (packet []byte, truncated bool) { return s.packets[i], false }

func (s *stream) receive(fd uintptr) (got int, end error) {
	// Until there is nothing, or nobody would wake us for what is left.
	for {
		if got, end = s.cut(); got > 0 || end != nil {
			return got, end
		}
		n, errno := receiveBytes(fd, s.room())
		switch {
		case errno == unix.EAGAIN:
			return 0, nil
		case errno != 0:
			return 0, fmt.Errorf("cannot receive from the client: %w", os.NewSyscallError("recvfrom", errno))
		case n == 0 && s.begin < s.end:
			return 0, io.ErrUnexpectedEOF
		case n == 0:
			return 0, io.EOF
		}
		s.end += n
	}
}

// cut makes packets of what is complete in the buffer, as many as go at once.
func (s *stream) cut() (got int, end error) {
	for got < Batch {
		rest := s.buffer[s.begin:s.end]
		if len(rest) < lengthSize {
			break
		}
		n := lengthSize + int(binary.BigEndian.Uint16(rest))
		switch {
		case n == lengthSize:
			return got, errEmpty
		case n > len(rest):
			return got, nil
		}
		s.packets[got] = rest[lengthSize:n:n]
		s.begin += n
		got++
	}
	return got, nil
}

// room is where the next bytes go, of which there is always some once cut has
// made no packet. Packets that were made are overwritten.
func (s *stream) room() []byte {
	if s.begin > 0 { // once a packet: its client may send it byte by byte
		s.end = copy(s.buffer, s.buffer[s.begin:s.end])
		s.begin = 0
	}
	return s.buffer[s.end:]
}

// receiveBytes reads into b and returns how many; 0 is the end of file. As with
// messages, ECONNRESET is told once, and nothing else follows but that.
func receiveBytes(fd uintptr, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))),
			uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR && errno != unix.ECONNRESET {
			return int(n), errno
		}
	}
}

// sendBytes sends the messages from i on as one stream, but for the first skip
// bytes, and returns how many bytes the socket took. Each message must have two
// parts. It never blocks.
func (g *gathered) sendBytes(fd uintptr, i, skip int) (int, unix.Errno) {
	v := g.vectors[2*i : 2*g.count]
	first := [2]unix.Iovec(v)
	for k := range first {
		part := unsafe.Slice(v[k].Base, v[k].Len)
		n := min(skip, len(part))
		setPart(&v[k], part[n:])
		skip -= n
	}
	h := unix.Msghdr{Iov: &v[0]}
	h.SetIovlen(len(v))
	n, errno := uintptr(0), unix.EINTR
	for errno == unix.EINTR {
		n, _, errno = unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
	copy(v, first[:])
	return int(n), errno
}
