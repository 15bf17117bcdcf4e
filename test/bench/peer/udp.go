package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/bench"
)

const (
	// header of a datagram: the sender's process id and a sequence number, which
	// says where in the pattern the rest begins.
	header = 4 + 8

	// settle is for how long datagrams come before they count.
	settle = 200 * time.Millisecond
)

// fill makes the n-th datagram after its process id.
func fill(datagram, data []byte, n uint64) {
	binary.BigEndian.PutUint64(datagram[4:], n)
	copy(datagram[header:], data[n%1024:])
}

// blast sends datagrams as fast as they go out, until it is killed.
func blast(o options) (r bench.Result, err error) {
	conn, err := net.Dial("udp4", o.address)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	data := pattern()
	datagram := make([]byte, max(o.size, header))
	binary.BigEndian.PutUint32(datagram, uint32(os.Getpid()))
	for start := time.Now(); time.Since(start) < settle+o.time+patience; {
		for range 64 { // between two looks at the clock
			fill(datagram, data, r.Packets)
			// Full queues and a sink that has gone are not this side's concern.
			if _, err := conn.Write(datagram); err == nil {
				r.Packets++
			}
		}
	}
	return r, errors.New("nobody has ended it")
}

// sink counts the datagrams of o.sender that come within o.time, and checks
// each. An earlier blast's may still be under way. What it cost to send them is
// left aside: the most are sent in vain.
func sink(o options) (r bench.Result, err error) {
	conn, err := net.ListenPacket("udp4", o.address)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	if err := enlarge(conn); err != nil {
		return r, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience + o.time)); err != nil {
		return r, err
	}
	s := newDatagrams(conn, o.sender)
	for r.Packets == 0 {
		if err := s.read(&r); err != nil {
			return r, err
		}
	}
	for start := time.Now(); time.Since(start) < settle; {
		if err := s.read(&r); err != nil {
			return r, err
		}
	}
	r = bench.Result{}
	usage, err := bench.StartUsage(o.pids, []int{o.sender})
	if err != nil {
		return r, err
	}
	for start := time.Now(); time.Since(start) < o.time; {
		if err := s.read(&r); err != nil {
			return r, err
		}
	}
	return r, usage.Stop(&r)
}

// datagrams reads and checks many at a time.
type datagrams struct {
	sender     int
	batch      *ipv4.PacketConn
	messages   []ipv4.Message
	data, want []byte
}

func newDatagrams(conn net.PacketConn, sender int) *datagrams {
	s := &datagrams{
		sender:   sender,
		batch:    ipv4.NewPacketConn(conn),
		messages: make([]ipv4.Message, 64),
		data:     pattern(),
		want:     make([]byte, 2048),
	}
	for i := range s.messages {
		s.messages[i].Buffers = [][]byte{make([]byte, 2048)}
	}
	return s
}

// read counts what has come.
func (s *datagrams) read(r *bench.Result) error {
	n, err := s.batch.ReadBatch(s.messages, 0)
	if err != nil {
		return err
	}
	for _, m := range s.messages[:n] {
		got := m.Buffers[0][:m.N]
		if len(got) < header {
			return fmt.Errorf("a datagram of %d bytes came", len(got))
		}
		if int(binary.BigEndian.Uint32(got)) != s.sender {
			continue
		}
		want := s.want[:len(got)]
		copy(want, got[:4])
		fill(want, s.data, binary.BigEndian.Uint64(got[4:]))
		if !bytes.Equal(got, want) {
			return errors.New("a datagram is not what was sent")
		}
		r.Packets++
		r.Bytes += uint64(len(got))
	}
	return nil
}

// enlarge gives the sink's socket room, so that what is lost is lost before it.
func enlarge(conn net.PacketConn) error {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return errors.New("not a socket")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		sockErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	})
	return errors.Join(err, sockErr)
}

// ping sends o.count echo requests, one at a time and with pauses, and gives
// the median round trip.
func ping(o options) (r bench.Result, err error) {
	conn, err := net.Dial("ip4:icmp", o.address)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	usage, err := bench.StartUsage(o.pids, nil)
	if err != nil {
		return r, err
	}
	var trips []time.Duration
	for seq := range o.count {
		trip, err := roundTrip(conn, seq)
		if err != nil {
			return r, err
		}
		trips = append(trips, trip)
		time.Sleep(5 * time.Millisecond) // idle again
	}
	slices.Sort(trips)
	r.P50 = trips[len(trips)/2]
	return r, usage.Stop(&r)
}

func roundTrip(conn net.Conn, seq int) (time.Duration, error) {
	payload := make([]byte, 56)
	binary.BigEndian.PutUint64(payload, uint64(time.Now().UnixNano()))
	echo := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: seq, Data: payload}}
	request, err := echo.Marshal(nil)
	if err != nil {
		return 0, err
	}
	echo.Type = ipv4.ICMPTypeEchoReply
	want, err := echo.Marshal(nil)
	if err != nil {
		return 0, err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := conn.Write(request); err != nil {
		return 0, err
	}
	for reply := make([]byte, 2048); ; {
		n, err := conn.Read(reply)
		if err != nil {
			return 0, err
		}
		if bytes.HasSuffix(reply[:n], want) { // after the IP header
			return time.Since(start), nil
		}
	}
}
