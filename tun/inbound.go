package tun

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Batch is the largest number of packets that are received from a channel in
// one system call: more in one go bring a client nothing.
const Batch = 128

// batchBytes bounds the memory of a batch where the MTU is large.
const batchBytes = 1 << 20

// inbound is the direction from one channel to the TUN. It belongs to the
// goroutine that runs it.
type inbound struct {
	*Tunnel
	ch    *channel
	batch *messages

	got  int   // messages that were received
	next int   // the first of them that is not yet handled
	end  error // of the channel, once these are handled
}

// runInbound ends with its channel. The event comes last, when Close does not
// wait for this goroutine any more, so that it may take the caller's locks.
func (t *Tunnel) runInbound(ch *channel) {
	err := (&inbound{Tunnel: t, ch: ch, batch: newBatch(0)}).pump()
	ended := t.channel.CompareAndSwap(ch, nil)
	ch.file.Close()
	close(ch.done)
	t.running.Done()
	if ended && t.events.ChannelClosed != nil {
		if failure := ch.failure.Load(); failure != nil {
			err = *failure
		}
		t.events.ChannelClosed(err)
	}
}

func newBatch(mtu int) *messages {
	size := slotSize(mtu)
	return newMessages(min(Batch, batchBytes/size), size)
}

// pump returns why the channel, or the device, does not work any more.
func (in *inbound) pump() error {
	receive, inject := in.receive, in.inject // made once, calls allocate nothing
	for in.end == nil {
		in.got, in.next = 0, 0
		if err := in.ch.raw.Read(receive); err != nil {
			return fmt.Errorf("cannot receive from the client: %w", err)
		}
		if err := in.device.Write(inject); err != nil {
			return fmt.Errorf("cannot write to the TUN: %w", err)
		}
	}
	return in.end
}

// receive takes what the channel has; false: nothing yet.
func (in *inbound) receive(fd uintptr) bool {
	if f := in.filter.Load(); f != nil && slotSize(f.mtu) > in.batch.size {
		in.batch = newBatch(f.mtu)
	}
	n, errno := in.batch.receive(fd)
	switch errno {
	case 0:
		in.got = n
	case unix.EAGAIN:
		return false
	default:
		in.end = fmt.Errorf("cannot receive from the client: %w", os.NewSyscallError("recvmmsg", errno))
		return true
	}
	// The end of file looks like a message without bytes.
	for i := range n {
		if in.batch.headers[i].Len == 0 {
			in.got, in.end = i, endOf(fd)
			break
		}
	}
	return true
}

// endOf tells the end of the channel from the empty message of a client that
// breaks the protocol.
func endOf(fd uintptr) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if n, err := unix.Poll(fds, 0); err == nil && n > 0 {
		return io.EOF
	}
	return errors.New("the client sent a message without a packet")
}

// inject writes what was received, as far as the filter lets it; false: the
// TUN is full, which only stand-ins are.
func (in *inbound) inject(fd uintptr) bool {
	for ; in.next < in.got; in.next++ {
		packet, truncated := in.batch.received(in.next)
		f := in.filter.Load() // for each packet: a new policy holds at once
		r := f.fromClient(packet)
		if truncated && f != nil {
			r = tooBig
		}
		if r != pass {
			in.stats.drop(r)
			continue
		}
		switch errno := writeFrame(fd, packet); errno {
		case 0:
			in.stats.received(len(packet))
		case unix.EAGAIN:
			return false
		case unix.EBADFD: // the interface is gone
			in.wake()
			in.stats.drop(write)
		default: // EIO: the interface is down
			in.stats.drop(write)
		}
	}
	return true
}
