package wgtun

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.zx2c4.com/wireguard/device"

	"github.com/vpnprovider/vpnproviderd/tun/tuntest"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// line is a channel whose messages wait until they are read.
type line struct {
	waiting [][]byte
	err     error
}

func (w *line) ReadPackets(bufs [][]byte, sizes []int) (n int, err error) {
	for n < len(bufs) && len(w.waiting) > 0 {
		if sizes[n] = copy(bufs[n], w.waiting[0]); sizes[n] < len(w.waiting[0]) {
			sizes[n] = 0 // as a channel does
		}
		w.waiting = w.waiting[1:]
		n++
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (w *line) WritePackets(messages [][]byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	for _, m := range messages {
		w.waiting = append(w.waiting, bytes.Clone(m))
	}
	return len(messages), nil
}

const headroom = 16 // of wireguard-go

// flow is the n-th, with segments of TCP or UDP of that size; the last is
// shorter.
func flow(n, count, size int) (packets [][]byte) {
	from, to := netip.MustParseAddrPort("10.8.0.2:1000"), netip.MustParseAddrPort("203.0.113.7:80")
	if n%2 == 1 {
		from, to = netip.MustParseAddrPort("[fd08::2]:1000"), netip.MustParseAddrPort("[2001:db8::7]:80")
	}
	from = netip.AddrPortFrom(from.Addr(), from.Port()+uint16(n))
	for i := range count {
		payload := bytes.Repeat([]byte{byte(i + n)}, size)
		if i == count-1 {
			payload = payload[:(size+1)/2]
		}
		var p []byte
		if n%3 == 0 {
			p = tuntest.Datagram(from, to, payload)
		} else {
			p = tuntest.Segment(from, to, uint32(i*size), tuntest.ACK, nil, payload)
		}
		if p[0]>>4 == 4 {
			binary.BigEndian.PutUint16(p[4:], uint16(i))
			tuntest.FixHeader(p)
		}
		packets = append(packets, p)
	}
	return packets
}

func withHeadroom(packets [][]byte) (bufs [][]byte) {
	for _, p := range packets {
		bufs = append(bufs, append(make([]byte, headroom), p...))
	}
	return bufs
}

// readAll reads to the end, into few buffers at a time.
func readAll(t *testing.T, s *superPackets, few int) (packets [][]byte) {
	t.Helper()
	bufs, sizes := make([][]byte, few), make([]int, few)
	for i := range bufs {
		bufs[i] = make([]byte, device.MaxMessageSize)
	}
	for {
		n, err := s.read(bufs, sizes, headroom)
		if err != nil {
			return packets
		}
		for i := range n {
			packets = append(packets, bytes.Clone(bufs[i][headroom:][:sizes[i]]))
		}
	}
}

// What is written as super-packets is read as the packets that it was made of,
// however many buffers there are, and the daemon has nothing to refuse.
func TestSuperPacketsRoundTrip(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		var packets [][]byte
		flows := 1 + random.IntN(4)
		for n := range flows {
			packets = append(packets, flow(n+random.IntN(3)*4, 1+random.IntN(60), 1+random.IntN(1400))...)
		}
		packets = append(packets, tuntest.Echo(netip.MustParseAddr("10.8.0.2"), netip.MustParseAddr("10.8.0.1"), 1, 1, nil), []byte{0x45, 1, 2})
		w := &line{}
		s := newSuperPackets(w, 16, vnet.MaxMessage)
		empty := make([]byte, headroom)
		n, err := s.write(append([][]byte{empty}, withHeadroom(packets)...), headroom)
		if n != len(packets) || err != nil {
			t.Fatalf("wrote %d of %d: %v", n, len(packets), err)
		}
		for _, m := range w.waiting {
			var p vnet.Packet
			if err := p.Check(m); err != nil {
				t.Fatalf("the daemon would refuse %x: %v", m[:min(len(m), 80)], err)
			}
		}
		got := readAll(t, s, 1+random.IntN(batchSize))
		slices.SortFunc(got, bytes.Compare)
		slices.SortFunc(packets, bytes.Compare)
		if !slices.EqualFunc(got, packets, bytes.Equal) {
			t.Fatalf("%d packets became %d others", len(packets), len(got))
		}
	}
}

func TestSuperPacketsMerge(t *testing.T) {
	w := &line{}
	s := newSuperPackets(w, 16, vnet.MaxMessage)
	for n := range 4 {
		w.waiting = nil
		if _, err := s.write(withHeadroom(flow(n, 40, 1400)), headroom); err != nil {
			t.Fatal(err)
		}
		if len(w.waiting) != 1 {
			t.Errorf("flow %d: %d messages", n, len(w.waiting))
		}
	}
}

// Frames of the kernel's whose checksum it left to the device, and those that
// nobody should send.
func TestSuperPacketsOfTheKernel(t *testing.T) {
	w := &line{}
	s := newSuperPackets(w, 4, vnet.MaxMessage)
	want := flow(1, 1, 100)[0]
	partial := append(make([]byte, vnet.HeaderLen), want...)
	binary.BigEndian.PutUint16(partial[vnet.HeaderLen+40+16:], tuntest.PseudoSum(want, tuntest.TCP, 40, false))
	vnet.Header{Flags: vnet.NeedsChecksum, ChecksumStart: 40, ChecksumOffset: 16}.Encode(partial)
	strange := append(make([]byte, vnet.HeaderLen), want...)
	vnet.Header{GSOType: vnet.TCP4, SegmentSize: 10}.Encode(strange)
	w.waiting = [][]byte{{1, 2, 3}, strange, make([]byte, vnet.MaxMessage+1), partial, strange}
	if got := readAll(t, s, batchSize); len(got) != 1 || !bytes.Equal(got[0], want) {
		t.Errorf("got %x", got)
	}
}

func TestSuperPacketsTooLongForTheBuffer(t *testing.T) {
	w := &line{}
	s := newSuperPackets(w, 4, vnet.MaxMessage)
	if _, err := s.write(withHeadroom(flow(1, 3, 1000)), headroom); err != nil {
		t.Fatal(err)
	}
	bufs, sizes := [][]byte{make([]byte, 100), make([]byte, 100)}, []int{7, 7}
	if n, err := s.read(bufs, sizes, headroom); n != 2 || err != nil || sizes[0] != 0 || sizes[1] != 0 {
		t.Errorf("read %d of sizes %v: %v", n, sizes, err)
	}
}

func TestSuperPacketsEnd(t *testing.T) {
	s := newSuperPackets(&line{err: io.ErrClosedPipe}, 4, vnet.MaxMessage)
	if n, err := s.write(withHeadroom(flow(1, 3, 1000)), headroom); n != 0 || err != io.ErrClosedPipe {
		t.Errorf("wrote %d: %v", n, err)
	}
	for range 2 {
		if n, err := s.read(make([][]byte, 1), make([]int, 1), 0); n != 0 || err != io.EOF {
			t.Errorf("read %d: %v", n, err)
		}
	}
}

// echoWire gives back what it is given, without allocating.
type echoWire struct {
	messages [64][]byte
	count    int
}

func (w *echoWire) WritePackets(messages [][]byte) (int, error) {
	for i, m := range messages {
		w.messages[i] = append(w.messages[i][:0], m...)
	}
	w.count = len(messages)
	return w.count, nil
}

func (w *echoWire) ReadPackets(bufs [][]byte, sizes []int) (int, error) {
	for i := range w.count {
		sizes[i] = copy(bufs[i], w.messages[i])
	}
	return w.count, nil
}

func TestSuperPacketsAllocateNothing(t *testing.T) {
	s := newSuperPackets(&echoWire{}, 16, vnet.MaxMessage)
	in := withHeadroom(append(flow(0, 30, 1300), flow(1, 30, 1300)...))
	bufs, sizes := make([][]byte, batchSize), make([]int, batchSize)
	for i := range bufs {
		bufs[i] = make([]byte, device.MaxMessageSize)
	}
	allocated := testing.AllocsPerRun(100, func() {
		if n, err := s.write(in, headroom); n != len(in) || err != nil {
			t.Fatalf("wrote %d: %v", n, err)
		}
		if n, err := s.read(bufs, sizes, headroom); n != len(in) || err != nil {
			t.Fatalf("read %d: %v", n, err)
		}
	})
	if allocated != 0 {
		t.Errorf("%v allocations", allocated)
	}
}
