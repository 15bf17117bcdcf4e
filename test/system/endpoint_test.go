package system

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// endpoint is the client's end of a tunnel: it answers every echo request that
// comes out of the channel, of ICMP and of UDP, and counts what a sender sent.
type endpoint struct {
	file io.ReadWriteCloser  // a packet at a time
	sent [flows]atomic.Int64 // packets of a sender
	all  *atomic.Int64       // those of every endpoint of the machine; may be nil
	done chan struct{}       // closed at the end of the channel
	err  error               // how it ended; nil is the end of file
}

// open opens the session's channel and serves it until the test ends.
func (v *vpn) open(session godbus.ObjectPath) *endpoint {
	v.t.Helper()
	return v.serve(v.openChannel(session))
}

// serve serves a channel until the test ends.
func (v *vpn) serve(file *os.File) *endpoint {
	v.t.Helper()
	e := &endpoint{file: file, all: &v.tunnelled, done: make(chan struct{})}
	e.start(v.t)
	return e
}

func (v *vpn) openChannel(session godbus.ObjectPath) *os.File {
	v.t.Helper()
	var fd godbus.UnixFD
	var info dict
	v.provider.must(v.provider.on(session, "OpenPacketChannel", dict{}), &fd, &info)
	file := os.NewFile(uintptr(fd), "channel")
	v.t.Cleanup(func() { file.Close() })
	return file
}

func serve(t testing.TB, file io.ReadWriteCloser) *endpoint {
	t.Helper()
	e := &endpoint{file: file, done: make(chan struct{})}
	e.start(t)
	return e
}

func (e *endpoint) start(t testing.TB) {
	t.Helper()
	go func() {
		defer close(e.done)
		e.err = e.serve()
	}()
	t.Cleanup(func() {
		e.file.Close()
		<-e.done
	})
}

func (e *endpoint) serve() error {
	packet := make([]byte, 1<<16)
	for {
		n, err := e.file.Read(packet)
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		e.count(packet[:n])
		if turn(packet[:n]) {
			if _, err := e.file.Write(packet[:n]); err != nil {
				return err
			}
		}
	}
}

// awaitEnd waits for the end of the channel.
func (e *endpoint) awaitEnd(t testing.TB) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, "the channel ends", func() error {
		select {
		case <-e.done:
			return nil
		default:
			return errors.New("it is open")
		}
	})
	if e.err != nil {
		t.Errorf("the channel ended with %v", e.err)
	}
}

func (e *endpoint) count(p []byte) {
	flow := 0
	switch {
	case len(p) >= 24 && p[0] == 0x45 && p[9] == 17 && binary.BigEndian.Uint16(p[22:]) == senderPort:
		flow = flowIPv4
	case len(p) >= 24 && p[0] == 0x45 && p[9] == 17 && binary.BigEndian.Uint16(p[22:]) == 53:
		flow = flowDNS
	case len(p) >= 44 && p[0]>>4 == 6 && p[6] == 17 && binary.BigEndian.Uint16(p[42:]) == senderPort:
		flow = flowIPv6
	default:
		return
	}
	e.sent[flow].Add(1)
	if e.all != nil {
		e.all.Add(1)
	}
}

const echoPort = 7

// turn makes the answer of an echo request, in place.
func turn(p []byte) bool {
	if len(p) < 28 {
		return false
	}
	protocol, header, size, at := p[9], int(p[0]&15)*4, 4, 12
	if p[0]>>4 == 6 {
		protocol, header, size, at = p[6], 40, 16, 8
	}
	payload := p[header:]
	switch {
	case len(payload) < 8:
		return false
	case protocol == 1 && payload[0] == 8, protocol == 58 && payload[0] == 128:
		before := binary.BigEndian.Uint16(payload)
		payload[0] = map[byte]byte{8: 0, 128: 129}[payload[0]]
		adjust(payload[2:4], before, binary.BigEndian.Uint16(payload))
	case protocol == 17 && binary.BigEndian.Uint16(payload[2:]) == echoPort:
		payload[0], payload[1], payload[2], payload[3] = payload[2], payload[3], payload[0], payload[1]
	default:
		return false
	}
	for i := range size { // the checksums stay what they are
		p[at+i], p[at+size+i] = p[at+size+i], p[at+i]
	}
	return true
}

// adjust is RFC 1624: the checksum after one word changed.
func adjust(sum []byte, before, after uint16) {
	s := uint32(^binary.BigEndian.Uint16(sum)) + uint32(^before) + uint32(after)
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	binary.BigEndian.PutUint16(sum, ^uint16(s))
}
