package client

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// offloadBatch is how many messages of the format "offload" are received with
// one system call. Few of the longest fit a socket.
const offloadBatch = 16

// longestPacket is the length in bytes of what fits a message.
const longestPacket = vnet.MaxMessage - vnet.HeaderLen

// offload lets a channel of the format "offload" move packets: it puts together
// what is sent, takes apart what is received, and so moves many packets of a
// flow as one super-packet.
type offload struct {
	receiver offloadReceiver
	sender   offloadSender
}

func newOffload(rx, tx *batch) *offload {
	o := &offload{
		receiver: offloadReceiver{batch: rx, arena: make([]byte, offloadBatch*vnet.MaxMessage)},
		sender: offloadSender{
			batch: tx, merged: vnet.NewCoalescer(maxBatch, vnet.OffloadAll),
			vectors: make([]unix.Iovec, 0, 2*maxBatch),
		},
	}
	for i := range offloadBatch {
		rx.prepare(i, o.receiver.message(i, vnet.MaxMessage))
	}
	return o
}

// offloadReceiver receives messages and hands out their packets. Callers take
// turns. A message of which a caller had only a part waits for the next.
type offloadReceiver struct {
	*batch // whose vectors are fixed
	turn   sync.Mutex
	arena  []byte

	count  int // messages that were received
	next   int // the first of them of which packets are left
	packet vnet.Packet
	part   int // the first segment of packet that is left
}

func (r *offloadReceiver) message(i, size int) []byte { return r.arena[i*vnet.MaxMessage:][:size] }

// receive is batch.receive, with packets for messages.
func (r *offloadReceiver) receive(bufs [][]byte, sizes []int) (n int, err error) {
	r.turn.Lock()
	defer r.turn.Unlock()
	want := min(len(bufs), len(sizes), maxBatch)
	if want == 0 {
		return 0, io.ErrShortBuffer
	}
	for _, p := range bufs[:want] {
		if len(p) == 0 {
			return 0, io.ErrShortBuffer
		}
	}
	for n == 0 {
		if err := r.fill(); err != nil {
			return 0, err
		}
		for n < want && r.next < r.count {
			if r.headers[r.next].len == 0 { // stays, for those who ask again
				if n == 0 {
					sizes[0], n = endOfFile, 1
				}
				return n, nil
			}
			n += r.take(bufs[n:want], sizes[n:])
		}
	}
	return n, nil
}

// fill receives messages, unless some are left.
func (r *offloadReceiver) fill() error {
	if r.next < r.count {
		return nil
	}
	r.count, r.next, r.part = 0, 0, 0
	n, err := r.run(offloadBatch)
	if errors.Is(err, unix.ECONNRESET) { // see batch.receive
		n, err = r.run(offloadBatch)
	}
	r.count = n
	return err
}

// take fills bufs with packets of the next message. A message that cannot be
// understood has none.
func (r *offloadReceiver) take(bufs [][]byte, sizes []int) (n int) {
	if r.part == 0 {
		h := &r.headers[r.next]
		if h.hdr.Flags&unix.MSG_TRUNC != 0 || r.packet.Parse(r.message(r.next, int(h.len))) != nil {
			r.next++
			return 0
		}
		r.packet.Complete()
	}
	left := r.packet.Segments() - r.part
	for n < min(left, len(bufs)) {
		sizes[n] = r.copy(bufs[n])
		r.part++
		n++
	}
	if n == left {
		r.next, r.part = r.next+1, 0
	}
	return n
}

// copy copies the next segment to p and returns its length, 0 if p is too
// short for it.
func (r *offloadReceiver) copy(p []byte) int {
	if !r.packet.Super() {
		if len(p) < len(r.packet.Bytes()) {
			return 0
		}
		return copy(p, r.packet.Bytes())
	}
	size := r.packet.HeadersLen()
	if len(p) < size {
		return 0
	}
	payload := r.packet.Segment(r.part, p)
	if len(p) < size+len(payload) {
		return 0
	}
	return size + copy(p[size:], payload)
}

// offloadSender puts packets together and sends them. Callers take turns.
type offloadSender struct {
	*batch
	turn    sync.Mutex
	merged  *vnet.Coalescer
	vectors []unix.Iovec
}

// send is batch.send, with packets for messages. Where it fails, what was sent
// need not be the first packets.
func (s *offloadSender) send(packets [][]byte) (sent int, err error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	for sent < len(packets) {
		some := packets[sent:min(sent+maxBatch, len(packets))]
		s.merged.Reset()
		for i, p := range some {
			if err = sendable(p); err != nil {
				some = some[:i]
				break
			}
			s.merged.Add(p)
		}
		if len(some) == 0 {
			return sent, fmt.Errorf("packet %d: %w", sent, err)
		}
		n, err := s.flush()
		if sent += n; err != nil {
			return sent, err
		}
	}
	return sent, nil
}

func sendable(packet []byte) error {
	switch {
	case len(packet) == 0:
		return errEmptyPacket
	case len(packet) > longestPacket:
		return unix.EMSGSIZE
	}
	return nil
}

// flush sends what was put together.
func (s *offloadSender) flush() (packets int, err error) {
	s.vectors = s.vectors[:0]
	for i := range s.merged.Groups() {
		at := len(s.vectors)
		s.vectors = s.merged.Vectors(i, s.vectors)
		h := &s.headers[i].hdr
		h.Iov = &s.vectors[at]
		h.SetIovlen(len(s.vectors) - at)
	}
	for next := 0; next < s.merged.Groups(); {
		n, err := s.runFrom(next, s.merged.Groups())
		for i := next; i < next+n; i++ {
			count, _ := s.merged.Group(i)
			packets += count
		}
		if next += n; err != nil {
			return packets, err
		}
	}
	return packets, nil
}
