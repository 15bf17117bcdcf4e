package wgtun

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// messages is a packet channel. Neither method allocates.
type messages interface {
	ReadPackets(bufs [][]byte, sizes []int) (int, error)
	WritePackets(messages [][]byte) (int, error)
}

// superPackets is the format "offload": a message is what the kernel moves at
// once, many packets of a flow with one header. It is taken apart into
// wireguard-go's buffers, and made of them, with one copy each way.
type superPackets struct {
	channel messages
	rx      splitter
	tx      merger
}

// splitter holds messages whose packets wireguard-go has not had yet.
type splitter struct {
	mu       sync.Mutex
	messages [][]byte // buffers
	sizes    []int
	got      int // messages that are there
	at       int // the message that is next
	segment  int // of packet, the one that is next; 0: message at is not looked at
	packet   vnet.Packet
}

type merger struct {
	mu        sync.Mutex
	coalescer *vnet.Coalescer
	vectors   []unix.Iovec
	messages  [][]byte
	room      []byte // of messages
}

// newSuperPackets reads batch messages of maxMessage bytes at a time.
func newSuperPackets(channel messages, batch, maxMessage int) *superPackets {
	s := &superPackets{
		channel: channel,
		rx:      splitter{messages: make([][]byte, batch), sizes: make([]int, batch)},
		tx:      merger{coalescer: vnet.NewCoalescer(batchSize, vnet.OffloadAll)},
	}
	for i := range s.rx.messages {
		s.rx.messages[i] = make([]byte, maxMessage)
	}
	return s
}

func (s *superPackets) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	rx := &s.rx
	rx.mu.Lock()
	defer rx.mu.Unlock()
	for {
		if rx.at == rx.got {
			var err error
			rx.at = 0
			if rx.got, err = s.channel.ReadPackets(rx.messages, rx.sizes); err != nil {
				rx.got = 0
				return 0, err
			}
		}
		if n := rx.split(bufs, sizes, offset); n > 0 {
			return n, nil
		}
	}
}

// split fills the buffers with packets, as far as there are both.
func (rx *splitter) split(bufs [][]byte, sizes []int, offset int) (n int) {
	for n < len(bufs) && rx.at < rx.got {
		if rx.segment == 0 && rx.packet.Parse(rx.messages[rx.at][:rx.sizes[rx.at]]) != nil {
			rx.at++ // no daemon sends that
			continue
		}
		p := &rx.packet
		sizes[n] = 0
		if to := bufs[n][offset:]; len(to) >= p.Longest() {
			sizes[n] = segment(p, rx.segment, to)
		}
		n++
		if rx.segment++; rx.segment == p.Segments() {
			rx.at, rx.segment = rx.at+1, 0
		}
	}
	return n
}

// segment copies the i-th packet that p stands for.
func segment(p *vnet.Packet, i int, to []byte) int {
	if !p.Super() {
		p.Complete()
		return copy(to, p.Bytes())
	}
	payload := p.Segment(i, to)
	return p.HeadersLen() + copy(to[p.HeadersLen():], payload)
}

// write gives the number of packets where all are sent, and else that of
// messages.
func (s *superPackets) write(bufs [][]byte, offset int) (n int, err error) {
	tx := &s.tx
	tx.mu.Lock()
	defer tx.mu.Unlock()
	for len(bufs) > 0 {
		some := bufs[:min(len(bufs), batchSize)]
		bufs = bufs[len(some):]
		packets := tx.merge(some, offset)
		if sent, err := s.channel.WritePackets(tx.messages); err != nil {
			return n + sent, err
		}
		n += packets
	}
	return n, nil
}

// merge makes messages of packets.
func (tx *merger) merge(bufs [][]byte, offset int) (packets int) {
	tx.coalescer.Reset()
	need := 0
	for _, b := range bufs {
		if len(b) > offset {
			tx.coalescer.Add(b[offset:])
			packets++
			need += vnet.HeaderLen + len(b) - offset
		}
	}
	if cap(tx.room) < need {
		tx.room = make([]byte, 0, max(need, batchSize*2048)) // now and then, while the MTU is found out
	}
	room := tx.room[:0]
	tx.messages = tx.messages[:0]
	for i := range tx.coalescer.Groups() {
		from := len(room)
		tx.vectors = tx.coalescer.Vectors(i, tx.vectors[:0])
		for _, v := range tx.vectors {
			room = append(room, unsafe.Slice(v.Base, v.Len)...)
		}
		tx.messages = append(tx.messages, room[from:])
	}
	return packets
}
