package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// relayBatch is how many packets Relay moves at once. What it holds is in no
// queue that could push back, so it is not larger than what pays.
const relayBatch = 64

// Relay moves packets both ways between a channel and a datagram socket
// (AF_UNIX, SOCK_DGRAM, one IP packet a message) that a tool such as openconnect
// brings, until either side ends, which is nil, or ctx is done, which is its
// error. It keeps order, waits where the other side is full, and allocates
// nothing per packet. The datagram socket is made
// nonblocking. Afterwards channel and datagram are open still and the caller's.
//
// A datagram socket does not see its peer close: reading hangs, and only a
// packet towards the dead peer fails. So without traffic Relay does not notice
// that the tool has died. Who starts the tool ends ctx when it exits.
func Relay(ctx context.Context, ch *Channel, datagram *os.File) error {
	r, err := newRelay(ch, datagram)
	if err != nil {
		return fmt.Errorf("cannot relay: %w", err)
	}
	defer r.file.Close()

	results := make(chan error, 2)
	var wg sync.WaitGroup
	wg.Go(func() { results <- r.toHost() })
	wg.Go(func() { results <- r.toTool() })
	select {
	case err = <-results:
	case <-ctx.Done():
		err = ctx.Err()
	}
	// Wake whoever waits, and leave the channel as it was.
	past := time.Unix(1, 0)
	_ = r.file.SetDeadline(past)
	_ = ch.file.SetDeadline(past)
	wg.Wait()
	_ = ch.file.SetDeadline(time.Time{})
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("cannot relay: %w", err)
	}
	return err
}

type relay struct {
	ch     *Channel
	file   *os.File // our copy of the datagram socket
	rx, tx *batch
	size   int // bytes that hold every message
}

func newRelay(ch *Channel, datagram *os.File) (*relay, error) {
	raw, err := datagram.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, err := duplicate(raw)
	if err != nil {
		return nil, err
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err == nil && kind != unix.SOCK_DGRAM {
		err = errors.New("not a datagram socket: Session.Attach takes a sequenced one")
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	r := &relay{ch: ch, size: max(ch.info.MaxMessage, ch.info.MTU, 2048)}
	r.file, r.rx, r.tx, err = openBatches(fd, "datagram socket")
	return r, err
}

// toHost moves packets from the tool to the channel.
func (r *relay) toHost() error {
	return r.move(r.rx.receive, r.ch.WritePackets)
}

// toTool moves packets from the channel to the tool.
func (r *relay) toTool() error {
	return r.move(r.ch.ReadPackets, r.tx.send)
}

// move ends with nil when either side has ended.
func (r *relay) move(receive func([][]byte, []int) (int, error), send func([][]byte) (int, error)) error {
	bufs, sizes := make([][]byte, relayBatch), make([]int, relayBatch)
	room := make([]byte, relayBatch*r.size)
	for i := range bufs {
		bufs[i] = room[i*r.size : (i+1)*r.size]
	}
	packets := make([][]byte, 0, relayBatch)
	for {
		n, err := receive(bufs, sizes)
		packets = packets[:0]
		for i, size := range sizes[:n] {
			if size > 0 { // else too long, or an empty datagram
				packets = append(packets, bufs[i][:size])
			}
		}
		for rest := packets; err == nil && len(rest) > 0; {
			var sent int
			sent, err = send(rest)
			rest = rest[sent:]
			if errors.Is(err, unix.EMSGSIZE) {
				rest, err = rest[1:], nil // as a link does with what is too big
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrClosedPipe), // the session ended
			errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE): // the tool did
			return nil
		default:
			return err
		}
	}
}
