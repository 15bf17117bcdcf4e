package tun

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// inbound is the direction from one channel to the TUN. It belongs to the
// goroutine that runs it.
type inbound struct {
	*Tunnel
	ch    *channel
	batch *messages
	feed  feed

	got   int   // messages that were received
	shown bool  // to captures: the frame that is next
	end   error // of the channel, once these are handled
}

// feed makes frames of messages.
type feed interface {
	// judge takes messages that were received and must stay as they are; all
	// frames of the former ones are done. It counts those that are refused.
	judge(m *messages, got int)

	// frame returns the parts of the first frame that is not done, the
	// virtio_net_hdr first and in a part that has nothing else before a
	// device without such headers; and of how many packets with how many
	// bytes it is. No parts: all are done.
	frame() (parts []unix.Iovec, packets, bytes int)

	// done takes the first frame off.
	done()
}

// runInbound ends with its channel. The event comes last, when Close does not
// wait for this goroutine any more, so that it may take the caller's locks.
func (t *Tunnel) runInbound(ch *channel) {
	in := &inbound{Tunnel: t, ch: ch}
	if ch.format == FormatOffload {
		in.batch, in.feed = newMessages(OffloadBatch, longestFrame), &messageFeed{Tunnel: t}
	} else {
		in.batch, in.feed = newBatch(0), newPacketFeed(t)
	}
	err := in.pump()
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

// slotSize returns how big slots must be for packets of up to mtu bytes: one
// more, to tell when a packet was longer.
func slotSize(mtu int) int { return max(2048, mtu+1) }

func newBatch(mtu int) *messages {
	size := slotSize(mtu)
	return newMessages(min(Batch, batchBytes/size), size)
}

// pump returns why the channel, or the device, does not work any more.
func (in *inbound) pump() error {
	receive, inject := in.receive, in.inject // made once, calls allocate nothing
	for in.end == nil {
		in.got = 0
		if err := in.ch.raw.Read(receive); err != nil {
			return fmt.Errorf("cannot receive from the client: %w", err)
		}
		in.feed.judge(in.batch, in.got)
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

// inject writes what was received, as far as it passed; false: the TUN is
// full, which only stand-ins are.
func (in *inbound) inject(fd uintptr) bool {
	for {
		parts, packets, bytes := in.feed.frame()
		if len(parts) == 0 {
			return true
		}
		if all := in.captures.Load(); all != nil && !in.shown {
			record(*all, incoming, vnet.HeaderLen, parts)
		}
		switch errno := in.writeFrame(fd, parts); errno {
		case 0:
			in.stats.received(packets, bytes)
		case unix.EAGAIN:
			in.shown = true
			return false
		case unix.EBADFD: // the interface is gone
			in.wake()
			in.stats.drop(write, packets)
		default: // EIO: the interface is down
			in.stats.drop(write, packets)
		}
		in.feed.done()
		in.shown = false
	}
}
