package system

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// bufferSize is the size in bytes of a socket's send buffer.
func bufferSize(t testing.TB, fd int) int {
	t.Helper()
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// requireInfo wants what a client is told of its channel, in these types.
func requireInfo(t testing.TB, got dict, format string, mtu uint32) {
	t.Helper()
	want := dict{
		"mtu": godbus.MakeVariant(mtu), "format": godbus.MakeVariant(format),
		"batch": godbus.MakeVariant(uint32(128)), "maxMessage": godbus.MakeVariant(uint32(65535)),
	}
	if format == wire.FormatOffload {
		want["batch"], want["maxMessage"] = godbus.MakeVariant(uint32(16)), godbus.MakeVariant(uint32(vnet.MaxMessage))
	}
	if fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) {
		t.Errorf("the info of format %s is %v, want %v", format, got, want)
	}
}

// echoMessages answers echo requests in messages with skip bytes before the
// packet, until the channel ends.
func echoMessages(t testing.TB, channel *os.File, skip int) (ended <-chan struct{}) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for message := make([]byte, vnet.MaxMessage); ; {
			n, err := channel.Read(message)
			if err != nil {
				return
			}
			if turn(message[skip:n]) {
				_, _ = channel.Write(message[:n])
			}
		}
	}()
	t.Cleanup(func() {
		channel.Close()
		<-done
	})
	return done
}

// Every open of a channel may ask for a format, and ends the channel before.
func TestFormats(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session := v.connect()
	v.configure(session, fullTunnel())
	var former <-chan struct{}
	for _, format := range []string{wire.FormatPacket, wire.FormatOffload, wire.FormatOffload, wire.FormatPacket, wire.FormatPacket} {
		channel, info := v.openFormat(session, format)
		requireInfo(t, info, format, 1400)
		raw, err := channel.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if format == wire.FormatOffload {
			_ = raw.Control(func(fd uintptr) {
				if size := bufferSize(t, int(fd)); size < vnet.MaxMessage {
					t.Errorf("the client can send %d bytes, a message has up to %d", size, vnet.MaxMessage)
				}
			})
		}
		if former != nil {
			<-former
		}
		former = echoMessages(t, channel, map[string]int{wire.FormatOffload: vnet.HeaderLen}[format])
		v.ping(t, "2", includedIPv4)
		v.ping(t, "2", includedIPv6)
	}
	for name, c := range map[string]struct {
		options dict
		texts   []string
	}{
		"unknown format": {dict{"format": godbus.MakeVariant("zip")}, []string{"format", "zip"}},
		"empty format":   {dict{"format": godbus.MakeVariant("")}, []string{"format"}},
		"another case":   {dict{"format": godbus.MakeVariant("Offload")}, []string{"format", "Offload"}},
		"a number":       {dict{"format": godbus.MakeVariant(uint32(1))}, []string{"format", "u"}},
		"unknown option": {dict{"fromat": godbus.MakeVariant("packet")}, []string{"fromat"}},
	} {
		call := v.provider.on(session, "OpenPacketChannel", c.options)
		if errorName(call.Err) != wire.ErrInvalidParameter {
			t.Errorf("%s: %v", name, call.Err)
		}
		v.provider.refused(call, wire.ErrInvalidParameter, c.texts...)
	}
	v.ping(t, "1", includedIPv4) // what was refused has changed nothing
}

// A client brings a socket for super-packets: it is told the same, and its
// buffers become large enough, in both directions.
func TestAttachedFormats(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session := v.connect()
	for _, format := range []string{wire.FormatOffload, wire.FormatPacket} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<12); err != nil {
			t.Fatal(err)
		}
		var info dict
		v.provider.must(v.provider.on(session, "AttachPacketChannel", godbus.UnixFD(fds[0]), dict{"format": godbus.MakeVariant(format)}), &info)
		size := bufferSize(t, fds[0]) // the daemon's end is this socket
		unix.Close(fds[0])
		if large := size >= vnet.MaxMessage; large != (format == wire.FormatOffload) {
			t.Errorf("%s: the daemon can send %d bytes", format, size)
		}
		requireInfo(t, info, format, 1500)
		if err := unix.SetNonblock(fds[1], true); err != nil {
			t.Fatal(err)
		}
		if format == wire.FormatPacket {
			v.configure(session, fullTunnel())
		}
		echoMessages(t, os.NewFile(uintptr(fds[1]), "own channel"), map[string]int{wire.FormatOffload: vnet.HeaderLen}[format])
	}
	v.ping(t, "2", includedIPv4)
}

// hostileMessages are messages of the format offload that no kernel could
// follow, or only to where it must not.
func hostileMessages() map[string][]byte {
	packet := datagram(includedIPv4, tunnelIPv4, strings.Repeat("bad ", 500))
	super := vnet.Header{
		Flags: vnet.NeedsChecksum, GSOType: vnet.UDP, HeadersLen: 28, SegmentSize: 1000, ChecksumStart: 20, ChecksumOffset: 6,
	}
	message := func(change func(*vnet.Header)) []byte {
		h := super
		change(&h)
		m := append(make([]byte, vnet.HeaderLen), packet...)
		h.Encode(m)
		return m
	}
	return map[string][]byte{
		"no header at all":             make([]byte, vnet.HeaderLen-1),
		"unknown flags":                message(func(h *vnet.Header) { h.Flags = 0xf0 }),
		"no checksum to complete":      message(func(h *vnet.Header) { h.Flags = 0 }),
		"unknown kind":                 message(func(h *vnet.Header) { h.GSOType = 77 }),
		"fragmentation":                message(func(h *vnet.Header) { h.GSOType = 3 }),
		"another protocol":             message(func(h *vnet.Header) { h.GSOType = vnet.TCP4 }),
		"another family":               message(func(h *vnet.Header) { h.GSOType = vnet.TCP6 }),
		"headers beyond the end":       message(func(h *vnet.Header) { h.HeadersLen = 0xffff }),
		"too short headers":            message(func(h *vnet.Header) { h.HeadersLen = 20 }),
		"segments of nothing":          message(func(h *vnet.Header) { h.SegmentSize = 0 }),
		"segments by fragments":        message(func(h *vnet.Header) { h.SegmentSize = 0xffff }),
		"too many segments":            message(func(h *vnet.Header) { h.SegmentSize = 1 }),
		"a checksum in the IP header":  message(func(h *vnet.Header) { h.ChecksumStart, h.ChecksumOffset = 0, 10 }),
		"a checksum in the payload":    message(func(h *vnet.Header) { h.ChecksumOffset = 100 }),
		"a checksum beyond the end":    message(func(h *vnet.Header) { h.ChecksumStart = 0xfff0 }),
		"a checksum at no word's end":  message(func(h *vnet.Header) { h.ChecksumStart, h.ChecksumOffset = 20, uint16(len(packet)-20)-1 }),
		"partial, and of another sort": message(func(h *vnet.Header) { h.GSOType, h.ChecksumOffset = vnet.None, 16 }),
	}
}

// What a client says of its super-packets is not believed: wrong headers are
// dropped and counted, and the next message passes.
func TestHostileSuperPackets(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session := v.connect()
	channel, _ := v.openFormat(session, wire.FormatOffload)
	v.configure(session, fullTunnel())
	program := v.program()
	want := map[string]uint64{}
	for name, message := range hostileMessages() {
		if _, err := channel.Write(message); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want["header"]++
		good := append(make([]byte, vnet.HeaderLen), datagram(includedIPv4, tunnelIPv4, name)...)
		if _, err := channel.Write(good); err != nil {
			t.Fatal(err)
		}
		if got := program.next(0); got != name {
			t.Fatalf("%q arrived, want %q", got, name)
		}
		v.requireDropped(session, want)
	}
	// The same as a good one: each datagram of it arrives.
	payload := bytes.Repeat([]byte("good "), 500)
	packet := datagram(includedIPv4, tunnelIPv4, string(payload))
	h := vnet.Header{Flags: vnet.NeedsChecksum, GSOType: vnet.UDP, HeadersLen: 28, SegmentSize: 1000, ChecksumStart: 20, ChecksumOffset: 6}
	binary.BigEndian.PutUint16(packet[26:], pseudoSum(packet))
	message := append(make([]byte, vnet.HeaderLen), packet...)
	h.Encode(message)
	if _, err := channel.Write(message); err != nil {
		t.Fatal(err)
	}
	for segment := range slices.Chunk(payload, 1000) {
		if got := program.next(0); got != string(segment) {
			t.Errorf("%q arrived, want %q", got, segment)
		}
	}
	v.requireDropped(session, want)
	want4 := uint64(len(hostileMessages()) + 3)
	if n := v.awaitCounted(session, "rxPackets", want4); n != want4 {
		t.Errorf("%d packets were received", n)
	}
}

// pseudoSum is what a partial checksum of UDP over IPv4 begins with.
func pseudoSum(packet []byte) uint16 {
	s := uint32(packet[9]) + uint32(len(packet)-20)
	for i := 12; i < 20; i += 2 {
		s += uint32(binary.BigEndian.Uint16(packet[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// A capture of a session with super-packets has them as the TUN has them, and
// Wireshark reads in it every byte that passed.
func TestCaptureOfSuperPackets(t *testing.T) {
	t.Parallel()
	harness.Require(t, "tshark")
	l := newLine(t, wire.FormatOffload)
	file := filepath.Join(t.TempDir(), "capture")
	done := record(t, l.ui.capture(t, l.session), file)
	l.ping(t, "2", includedIPv4)
	c := newContent(100_000, 1) // fits what waits for a slow reader
	l.stream(t, includedIPv4, c)
	l.stream(t, includedIPv6, c)
	l.disconnect() // ends the capture
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if wrong := slices.DeleteFunc(l.tshark(t, file, "_ws.malformed"), func(s string) bool { return s == "" }); len(wrong) > 0 {
		t.Errorf("malformed: %v", wrong)
	}
	passed, super := map[string]map[int]int{}, 0
	for _, line := range l.tshark(t, file, "frame.len", "ip.len", "ipv6.plen", "ip.src", "ipv6.src", "tcp.seq", "tcp.len") {
		fields := strings.Split(line, ",")
		if len(fields) != 7 {
			t.Fatalf("tshark printed %q", line)
		}
		number := func(i int) int { n, _ := strconv.Atoi(fields[i]); return n }
		frame, said := number(0), number(1)
		if fields[2] != "" {
			said = 40 + number(2)
		}
		if frame != said {
			t.Errorf("a packet of %d bytes says that it has %d", frame, said)
		}
		if frame > 1400 {
			super++
		}
		from := fields[3] + fields[4]
		if passed[from] == nil {
			passed[from] = map[int]int{}
		}
		passed[from][number(5)] = max(passed[from][number(5)], number(6))
	}
	for _, from := range []string{tunnelIPv4, includedIPv4, tunnelIPv6, includedIPv6} {
		at := 1 // of the stream, relative
		for passed[from][at] > 0 {
			at += passed[from][at]
		}
		if at-1 != len(c.block) {
			t.Errorf("from %s the capture has %d bytes of a stream of %d", from, at-1, len(c.block))
		}
	}
	if super == 0 {
		t.Error("there was no super-packet")
	}
	t.Logf("%d super-packets", super)
}

// record copies a capture to a file until it ends.
func record(t testing.TB, stream *os.File, name string) (done <-chan error) {
	t.Helper()
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := file.ReadFrom(stream)
		if closeErr := file.Close(); err == nil {
			err = closeErr
		}
		ended <- err
	}()
	return ended
}
