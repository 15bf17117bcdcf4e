package tun

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// burst is how many frames are read from the TUN before they are sent on:
// enough to share the cost of a send, few enough to add no delay.
const burst = 16

// outbound is the direction from the TUN to the client. It belongs to the
// goroutine that runs it.
type outbound struct {
	*Tunnel
	frames *messages

	read int        // frames that wait in the slots
	sent int        // of these, how many the consumer has
	dead unix.Errno // of the TUN
	ch   *channel   // that transmit sends to
	fail unix.Errno // of ch
}

// runOutbound ends with the device. The event comes last, when Close does not
// wait for this goroutine any more, so that it may take the caller's locks.
func (t *Tunnel) runOutbound() {
	err := (&outbound{Tunnel: t, frames: newMessages(burst, slotSize(0))}).pump()
	t.running.Done()
	if err != nil && t.events.Failed != nil {
		t.events.Failed(err)
	}
}

// pump returns nil when the tunnel was closed, or how the TUN died.
func (o *outbound) pump() error {
	fill, transmit := o.fill, o.transmit // made once, calls allocate nothing
	for {
		o.read, o.sent = 0, 0
		err := o.device.Read(fill)
		switch {
		case o.closed.Load():
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			// wake: there may be a consumer now. Whoever wakes has changed
			// it before, and fill looks after this reset.
			err = o.link.SetReadDeadline(time.Time{})
		case err == nil && o.dead != 0:
			err = os.NewSyscallError("read", o.dead)
		}
		if err != nil {
			return fmt.Errorf("cannot read from the TUN: %w", err)
		}
		o.deliver(transmit)
	}
}

// fill reads frames until there are no more, burst at most. It returns false
// to wait for more, as it does while there is nobody to have them.
func (o *outbound) fill(fd uintptr) bool {
	limit := burst
	if o.channel.Load() == nil {
		if o.sink.Load() == nil {
			o.dead = failure(fd)
			return o.dead != 0
		}
		limit = 1 // a sink takes its time: leave the rest to the device's queue
	}
	f := o.filter.Load()
	if f != nil && slotSize(f.mtu) > o.frames.size {
		o.frames = newMessages(burst, slotSize(f.mtu))
	}
	for range limit {
		slot := o.frames.slot(o.read)
		n, errno := readFrame(fd, slot)
		switch {
		case errno == unix.EAGAIN:
			return o.read > 0
		case errno == 0 && n == 0:
			errno = unix.ENODEV
			fallthrough
		case errno != 0:
			o.dead = errno
			return true
		}
		if r := f.toClient(slot[:n]); r != pass {
			o.stats.drop(r)
			continue
		}
		o.frames.setLen(o.read, n)
		o.read++
	}
	return true
}

// failure tells how the TUN has died, 0 while it has not.
func failure(fd uintptr) unix.Errno {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	if n, err := unix.Poll(fds, 0); err == nil && n > 0 {
		return unix.ENODEV
	}
	return 0
}

// deliver hands on what fill has read. What a channel did not take when it
// ended goes to the next consumer; without one it is lost with the channel.
func (o *outbound) deliver(transmit func(uintptr) bool) {
	for o.sent < o.read && !o.closed.Load() {
		if ch := o.channel.Load(); ch != nil {
			o.deliverTo(ch, transmit)
		} else if sink := o.sink.Load(); sink != nil {
			packet := o.frames.sendable(o.sent)
			o.sent++
			if (*sink)(packet) == nil {
				o.stats.sent(1, len(packet))
			}
		} else {
			return
		}
	}
}

// deliverTo waits while the channel is full. It returns when all is sent or
// the channel is no longer the tunnel's.
func (o *outbound) deliverTo(ch *channel, transmit func(uintptr) bool) {
	o.ch, o.fail = ch, 0
	err := ch.raw.Write(transmit)
	if err == nil && o.fail == 0 {
		return
	}
	if err == nil {
		err = os.NewSyscallError("sendmmsg", o.fail)
	}
	if o.channel.Load() == ch {
		ch.fail(fmt.Errorf("cannot send to the client: %w", err))
		<-ch.done
	}
}

// transmit sends the frames that wait; false: the socket is full.
func (o *outbound) transmit(fd uintptr) bool {
	for o.sent < o.read {
		n, errno := o.frames.send(fd, o.sent, o.read)
		switch errno {
		case 0:
			bytes := 0
			for i := range n {
				bytes += len(o.frames.sendable(o.sent + i))
			}
			o.sent += n
			o.stats.sent(n, bytes)
		case unix.EAGAIN:
			return false
		case unix.EMSGSIZE: // the client's own socket has a tiny buffer
			o.stats.drop(tooBig)
			o.sent++
		case unix.ENOBUFS, unix.ENOMEM:
			o.stats.drop(write)
			o.sent++
		default:
			o.fail = errno
			return true
		}
	}
	return true
}
