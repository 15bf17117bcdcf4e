package tun

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// inbound is the direction from one channel to the TUN. It belongs to the
// goroutine that runs it.
type inbound struct {
	*Tunnel
	ch     *channel
	intake intake
	feed   feed

	got   int   // messages that were received
	shown bool  // to captures: the frame that is next
	end   error // of the channel, once these are handled
}

// feed makes frames of messages.
type feed interface {
	// judge takes the messages that were received and must stay as they are;
	// all frames of the former ones are done. It counts those that are refused.
	judge(received intake, got int)

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
	switch ch.format {
	case FormatOffload:
		in.intake, in.feed = newMessages(OffloadBatch, longestFrame), &messageFeed{Tunnel: t}
	case FormatStream:
		in.intake, in.feed = newStream(), newPacketFeed(t)
	case FormatPacket:
		in.intake, in.feed = newBatch(0), newPacketFeed(t)
	}
	err := in.pump()
	ended := t.channel.CompareAndSwap(ch, nil)
	ch.close()
	close(ch.done)
	t.running.Done()
	if ended && t.events.ChannelClosed != nil {
		if failure := ch.failure.Load(); failure != nil {
			err = *failure
		}
		t.events.ChannelClosed(err)
	}
}

// pump returns why the channel, or the device, does not work any more.
func (in *inbound) pump() error {
	receive, inject := in.receive, in.inject // made once, calls allocate nothing
	for in.end == nil {
		in.got = 0
		if err := in.ch.raw.Read(receive); err != nil {
			return fmt.Errorf("cannot receive from the client: %w", err)
		}
		in.feed.judge(in.intake, in.got)
		if err := in.device.Write(inject); err != nil {
			return fmt.Errorf("cannot write to the TUN: %w", err)
		}
	}
	return in.end
}

// receive takes what the channel has; false: nothing yet.
func (in *inbound) receive(fd uintptr) bool {
	if f := in.filter.Load(); f != nil {
		in.intake.fit(f.mtu)
	}
	in.got, in.end = in.intake.receive(fd)
	return in.got > 0 || in.end != nil
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
