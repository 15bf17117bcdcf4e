package vnet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
)

// wireguard is wireguard-go's device on one end of a socket pair, where it
// takes messages apart and puts packets together as on a TUN.
type wireguard struct {
	testing.TB
	device tun.Device
	kernel int // the other end
	bufs   [][]byte
	sizes  []int

	corrected int // packets
}

// newWireguard has to begin with a TUN, which the device asks for its name. The
// socket then takes the place of the descriptor.
func newWireguard(tb testing.TB) *wireguard {
	tb.Helper()
	lacking := func(what string, err error) {
		if err == nil {
			return
		}
		if os.Getenv("CI") != "" {
			tb.Fatalf("this test needs %s: %v", what, err)
		}
		tb.Skipf("this test needs %s: %v", what, err)
	}
	runtime.LockOSThread() // for ever: the thread is in a network of its own
	lacking("network namespaces", unix.Unshare(unix.CLONE_NEWNET))
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	lacking("TUN devices", err)
	request, err := unix.NewIfreq("oracle0")
	if err != nil {
		tb.Fatal(err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	lacking("TUN devices", unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
	w := &wireguard{TB: tb, sizes: make([]int, 2048), bufs: make([][]byte, 2048)}
	if w.device, _, err = tun.CreateUnmonitoredTUNFromFD(fd); err != nil {
		tb.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	for _, end := range pair {
		if err := unix.SetsockoptInt(end, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20); err != nil {
			tb.Fatal(err)
		}
	}
	if err := unix.Dup3(pair[0], fd, unix.O_CLOEXEC); err != nil {
		tb.Fatal(err)
	}
	unix.Close(pair[0])
	w.kernel = pair[1]
	for i := range w.bufs {
		w.bufs[i] = make([]byte, 2048)
	}
	tb.Cleanup(func() {
		w.device.Close()
		unix.Close(w.kernel)
	})
	return w
}

// split gives the packets that a message stands for, until the next call. It
// corrects UDP checksums of 0, which would say that there is none, and lengths
// of IPv6 that leave extension headers out.
func (w *wireguard) split(message []byte) (packets [][]byte) {
	w.Helper()
	if _, err := unix.Write(w.kernel, message); err != nil {
		w.Fatal(err)
	}
	n, err := w.device.Read(w.bufs, w.sizes, 0)
	if err != nil {
		w.Fatalf("%v: %x", err, message[:min(len(message), 100)])
	}
	for i := range n {
		p := w.bufs[i][:w.sizes[i]]
		packets = append(packets, p)
		h := Decode(message)
		if h.GSOType != None && p[0]>>4 == 6 && h.ChecksumStart > ip6Header {
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ip6Header))
			w.corrected++
		}
		if h.Flags != NeedsChecksum || h.ChecksumOffset != udpChecksum {
			continue
		}
		if sum := p[h.ChecksumStart+udpChecksum:]; sum[0] == 0 && sum[1] == 0 {
			sum[0], sum[1] = 0xff, 0xff
			w.corrected++
		}
	}
	return packets
}

// coalesce gives the messages that become of packets.
func (w *wireguard) coalesce(packets [][]byte) (messages [][]byte) {
	w.Helper()
	var bufs [][]byte
	for _, p := range packets {
		bufs = append(bufs, append(make([]byte, HeaderLen, MaxMessage), p...))
	}
	if _, err := w.device.Write(bufs, HeaderLen); err != nil {
		w.Fatal(err)
	}
	for buffer := make([]byte, MaxMessage); ; {
		n, _, err := unix.Recvfrom(w.kernel, buffer, unix.MSG_DONTWAIT)
		if err != nil {
			return messages
		}
		messages = append(messages, bytes.Clone(buffer[:n]))
	}
}

// template is a super-packet of which much may be changed without a sum.
type template struct {
	protocol byte
	start    int
	bytes    []byte
}

func templates() (all []template) {
	payload := make([]byte, 65535-120)
	for _, t := range []template{
		{tuntest.TCP, 20, tuntest.Segment(a4, b4, 1, tuntest.ACK, nil, payload)},
		{tuntest.TCP, 20, tuntest.Segment(a4, b4, 1, tuntest.ACK|tuntest.PSH, timestamps, payload)},
		{tuntest.TCP, 20, tuntest.Segment(a4, b4, 1, tuntest.ACK|tuntest.FIN|tuntest.ECE, make([]byte, 40), payload)},
		{tuntest.TCP, 40, tuntest.Segment(a6, b6, 1, tuntest.ACK|tuntest.FIN|tuntest.PSH, timestamps, payload)},
		{tuntest.UDP, 20, tuntest.Datagram(a4, b4, payload)},
		{tuntest.UDP, 40, tuntest.Datagram(a6, b6, payload)},
	} {
		all = append(all, t)
		if t.start == 20 { // and with options
			with := append(append(bytes.Clone(t.bytes[:20]), 7, 7, 4, 0, 0, 0, 0, 0), t.bytes[20:]...)
			with[0] = 0x47
			all = append(all, template{t.protocol, 28, with})
		}
	}
	return all
}

// make makes a super-packet, or a packet with a partial checksum, of the
// template.
func (t template) make(random *rand.Rand, message []byte) []byte {
	size := 1 + random.IntN(300)
	length := 1 + random.IntN(size*8)
	if random.IntN(500) == 0 {
		size = 1 + random.IntN(1460)
		length = 1 + random.IntN(min(65000, size*1000))
	}
	end := t.start + 8
	at := 6
	if t.protocol == tuntest.TCP {
		end, at = t.start+int(t.bytes[t.start+12]>>4)*4, 16
	}
	message = append(message[:HeaderLen], t.bytes[:end+length]...)
	b := message[HeaderLen:]
	fill := func(from, to int) {
		for i := from; i < to; i += 8 {
			var v [8]byte
			binary.LittleEndian.PutUint64(v[:], random.Uint64())
			copy(b[i:to], v[:])
		}
	}
	fill(end, len(b))
	fill(t.start, t.start+4) // ports
	h := Header{
		Flags: NeedsChecksum, GSOType: UDP, HeadersLen: uint16(end), SegmentSize: uint16(size),
		ChecksumStart: uint16(t.start), ChecksumOffset: uint16(at),
	}
	if b[0]>>4 == 4 {
		fill(12, 20) // addresses
		fill(4, 6)   // identification
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		b[1], b[8] = byte(random.Uint32()), byte(random.Uint32())
		b[6] = byte(random.IntN(2)) << 6
		put(b[10:], 0)
		put(b[10:], ^fold(sum(b[:t.start], 0)))
	} else {
		fill(8, 40)
		fill(1, 4) // traffic class and flow label
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
	if t.protocol == tuntest.TCP {
		fill(t.start+4, t.start+12) // numbers
		fill(t.start+14, t.start+16)
		fill(t.start+18, end) // urgent pointer and options
		h.GSOType = TCP4
		if b[0]>>4 == 6 {
			h.GSOType = TCP6
		}
	} else {
		binary.BigEndian.PutUint16(b[t.start+4:], uint16(len(b)-t.start))
	}
	put(b[t.start+at:], fold(pseudo(b, transport{t.protocol, t.start}, len(b)-t.start)))
	if length <= 1400 && random.IntN(5) == 0 {
		h.GSOType, h.HeadersLen, h.SegmentSize = None, 0, 0
	}
	if random.IntN(10) == 0 {
		h.HeadersLen = uint16(len(b)) // as the kernel has it when it forwards
	}
	h.Encode(message)
	return message
}

// newRandom is another one in each run, and tells which it is.
func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("the seed is %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// With the race detector the millions take minutes, so it leaves them to a run
// without it.
func TestAsWireguardWithoutRaceDetector(t *testing.T) {
	if !raceEnabled || testing.Short() {
		t.Skip("is for the race detector")
	}
	out, err := exec.Command("go", "test", "-count=1", "-run", "^Test(Split|Coalesce)AsWireguard$", "-v", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// Both take 1,000,000 messages apart in the same way.
func TestSplitAsWireguard(t *testing.T) {
	w := newWireguard(t)
	all := templates()
	random := newRandom(t)
	message := make([]byte, HeaderLen, MaxMessage)
	headers, packet := make([]byte, 200), make([]byte, 0, 2048)
	segments := 0
	for i := range rounds(1_000_000) {
		from := all[random.IntN(len(all))]
		message = from.make(random, message)
		theirs := w.split(message)
		var p Packet
		// As if of the kernel, and as if of a client.
		parse := (*Packet).Check
		if i%2 == 0 {
			parse = (*Packet).Parse
		}
		if err := parse(&p, message); err != nil {
			if len(theirs) > maxUDPSegments && from.protocol == tuntest.UDP && i%2 == 1 {
				continue
			}
			t.Fatalf("message %d: %v: %x", i, err, message[:min(len(message), 200)])
		}
		if p.Segments() != len(theirs) {
			t.Fatalf("message %d: %d segments, wireguard-go has %d: %x", i, p.Segments(), len(theirs), message[:min(len(message), 200)])
		}
		p.Complete()
		for j := range theirs {
			ours := p.Bytes()
			if p.Super() {
				payload := p.Segment(j, headers)
				packet = append(append(packet[:0], headers[:p.HeadersLen()]...), payload...)
				ours = packet
			}
			segments++
			if !bytes.Equal(ours, theirs[j]) {
				t.Fatalf("message %d, segment %d is\n%x, wireguard-go has\n%x", i, j, ours, theirs[j])
			}
		}
	}
	t.Logf("%d segments, %d of wireguard-go corrected", segments, w.corrected)
}

// 1,000,000 packets come out as they went in, whoever puts them together and
// whoever takes them apart.
func TestCoalesceAsWireguard(t *testing.T) {
	w := newWireguard(t)
	random := newRandom(t)
	c := NewCoalescer(128, OffloadAll)
	packets, ours, theirs := 0, 0, 0
	for packets < rounds(1_000_000) {
		sent := mix(random)
		packets += len(sent)
		var got [][]byte
		for _, m := range coalesced(c, sent...) {
			for _, p := range w.split(m) {
				got = append(got, bytes.Clone(p))
			}
		}
		same(t, got, sent)

		// What is not in order, it merges in ways of its own.
		sent = whole(orderly(random))
		packets += len(sent)
		ours += len(coalesced(c, sent...))
		theirs += w.roundTrip(t, sent)
	}
	t.Logf("%d packets: %d messages, wireguard-go makes %d", packets, ours, theirs)
}

// roundTrip has wireguard-go put packets together, and takes them apart again.
// It returns how many messages there were.
func (w *wireguard) roundTrip(t *testing.T, sent [][]byte) int {
	t.Helper()
	messages := w.coalesce(sent)
	var got [][]byte
	for _, m := range messages {
		var p Packet
		if err := p.Check(m); err != nil {
			t.Fatalf("%v: %x", err, m[:min(len(m), 100)])
		}
		got = append(got, split(&p)...)
	}
	equal(t, "wireguard-go's", alike(got), alike(sent))
	return len(messages)
}

// alike has no order and lacks what wireguard-go takes no care of:
// identifications, and windows of TCP.
func alike(packets [][]byte) (all [][]byte) {
	for _, p := range packets {
		p = bytes.Clone(p)
		if p[0]>>4 == 4 {
			p[4], p[5], p[10], p[11] = 0, 0, 0, 0
		}
		if h, ok := findTransport(p); ok && h.protocol == tcp && fold(sum(p[h.start:], pseudo(p, h, len(p)-h.start))) == 0xffff {
			p[h.start+14], p[h.start+15] = 0, 0
			tuntest.FixTransport(p, tcp, h.start)
		}
		all = append(all, p)
	}
	sortPackets(all)
	return all
}

// whole are those of TCP and UDP that are not fragments.
func whole(packets [][]byte) [][]byte {
	return slices.DeleteFunc(slices.Clone(packets), func(p []byte) bool { _, ok := findTransport(p); return !ok })
}
