package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/bench"
)

const (
	// prologue is what is sent and hashed before anything is timed. It also
	// brings TCP's window to its size.
	prologue = 16 << 20

	chunk = 128 << 10 // of one read or write

	// patience bounds every role beyond the time that it measures.
	patience = 30 * time.Second
)

// pattern is what is sent over and over while it is timed: as cheap to check as
// bytes can be, and of an odd length, so that what comes at another place than
// it was sent to does not match.
func pattern() []byte {
	p := make([]byte, 262_397)
	rand.NewChaCha8([32]byte{'p'}).Read(p)
	return p
}

// send connects, sends its process id and the prologue, compares the SHA-256 of
// that with what the other side says, and sends the pattern for o.time.
func send(o options) (r bench.Result, err error) {
	dialer := net.Dialer{Timeout: patience, Control: useCubic}
	conn, err := dialer.DialContext(context.Background(), "tcp4", o.address)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience + o.time)); err != nil {
		return r, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return r, errors.New("not a TCP connection")
	}
	if r.Congestion, err = congestion(tcp); err != nil {
		return r, err
	}
	if err := sendPrologue(tcp); err != nil {
		return r, err
	}
	data := pattern()
	start := time.Now()
	for at := 0; time.Since(start) < o.time; {
		n, err := tcp.Write(data[at:min(at+chunk, len(data))])
		if err != nil {
			return r, err
		}
		r.Bytes += uint64(n)
		at = (at + n) % len(data)
	}
	r.Elapsed = time.Since(start)
	if err := tcp.CloseWrite(); err != nil {
		return r, err
	}
	_, err = io.ReadFull(tcp, make([]byte, 1)) // stay until it is measured
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return r, err
}

func sendPrologue(conn net.Conn) error {
	head := binary.BigEndian.AppendUint32(nil, uint32(os.Getpid()))
	sum, random := sha256.New(), rand.NewChaCha8([32]byte(binary.BigEndian.AppendUint64(make([]byte, 24), rand.Uint64())))
	if _, err := conn.Write(head); err != nil {
		return err
	}
	if _, err := io.CopyN(io.MultiWriter(conn, sum), random, prologue); err != nil {
		return err
	}
	theirs := make([]byte, sha256.Size)
	if _, err := io.ReadFull(conn, theirs); err != nil {
		return err
	}
	if !bytes.Equal(theirs, sum.Sum(nil)) {
		return errors.New("what arrived has another SHA-256 than what was sent")
	}
	return nil
}

// receive measures one connection, from the first byte of the pattern to the
// end, and checks every byte.
func receive(o options) (r bench.Result, err error) {
	listener, err := net.Listen("tcp4", o.address)
	if err != nil {
		return r, err
	}
	defer listener.Close()
	ready()
	conn, err := listener.Accept()
	if err != nil {
		return r, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience + o.time)); err != nil {
		return r, err
	}
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return r, err
	}
	sum := sha256.New()
	if _, err := io.CopyN(sum, conn, prologue); err != nil {
		return r, err
	}
	usage, err := bench.StartUsage(append(o.pids, int(binary.BigEndian.Uint32(head[:]))), nil)
	if err != nil {
		return r, err
	}
	if _, err := conn.Write(sum.Sum(nil)); err != nil {
		return r, err
	}
	if r.Bytes, err = readPattern(conn); err != nil {
		return r, err
	}
	return r, usage.Stop(&r)
}

func readPattern(conn net.Conn) (total uint64, err error) {
	data, buf := pattern(), make([]byte, chunk)
	for at := 0; ; {
		n, err := conn.Read(buf)
		for part := buf[:n]; len(part) > 0; {
			size := min(len(part), len(data)-at)
			if !bytes.Equal(part[:size], data[at:at+size]) {
				return total, fmt.Errorf("what arrived after %d bytes is not what was sent", total)
			}
			part, at, total = part[size:], (at+size)%len(data), total+uint64(size)
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// useCubic asks for cubic, since the pacing of bbr would hide the way of the
// packets. In a network namespace the kernel lets root alone choose it, for one
// socket.
func useCubic(_, _ string, socket syscall.RawConn) error {
	return socket.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic") // the Result tells which it is
	})
}

func congestion(conn syscall.Conn) (name string, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		name, sockErr = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	})
	return string(bytes.TrimRight([]byte(name), "\x00")), errors.Join(err, sockErr)
}
