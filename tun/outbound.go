package tun

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// outbound is the direction from the TUN to the client. It belongs to the
// goroutine that runs it.
type outbound struct {
	*Tunnel
	frames *frames
	dead   unix.Errno // of the TUN

	// The first packet that no consumer has yet: its frame and, in a
	// super-packet, its segment.
	frame, segment int

	ch     *channel   // that transmit sends to
	fail   unix.Errno // of ch
	prefix int        // bytes before each packet that are made here
	out    gathered   // messages for ch, from the first packet on
	sent   int        // of out
	part   int        // bytes of the next one that are sent already
	shown  int        // of out, to captures

	whole []byte // for a segment in one piece
}

// runOutbound ends with the device. The event comes last, when Close does not
// wait for this goroutine any more, so that it may take the caller's locks.
func (t *Tunnel) runOutbound() {
	err := (&outbound{Tunnel: t, frames: newFrames(t.offload)}).pump()
	t.running.Done()
	if err != nil && t.events.Failed != nil {
		t.events.Failed(err)
	}
}

// pump returns nil when the tunnel was closed, or how the TUN died.
func (o *outbound) pump() error {
	fill, transmit := o.fill, o.transmit // made once, calls allocate nothing
	for {
		o.frames.reset()
		o.frame, o.segment = 0, 0
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

// fill reads frames until there are no more, or the burst is complete. It
// returns false to wait for more, as it does while there is nobody to have
// them.
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
	for range limit {
		message, errno := o.frames.read(fd)
		switch errno {
		case 0:
		case unix.EAGAIN:
			return o.frames.count > 0
		default:
			o.dead = errno
			return true
		}
		p := o.frames.next()
		if r := f.messageToClient(p, message); r != pass {
			o.stats.drop(r, p.Segments())
			continue
		}
		if !o.frames.keep() {
			break
		}
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
	for o.frame < o.frames.count && !o.closed.Load() {
		if ch := o.channel.Load(); ch != nil {
			o.deliverTo(ch, transmit)
		} else if sink := o.sink.Load(); sink != nil {
			packet := o.packet()
			o.advance()
			if all := o.captures.Load(); all != nil {
				var part [1]unix.Iovec
				setPart(&part[0], packet)
				record(*all, outgoing, 0, part[:])
			}
			if (*sink)(packet) == nil {
				o.stats.sent(1, len(packet))
			}
		} else {
			return
		}
	}
}

// packet returns the first packet that no consumer has yet, in one piece.
func (o *outbound) packet() []byte {
	p := &o.frames.packets[o.frame]
	if !p.Super() {
		p.Complete()
		return p.Bytes()
	}
	if o.whole == nil {
		o.whole = make([]byte, longestFrame)
	}
	payload := p.Segment(o.segment, o.whole)
	return o.whole[:p.HeadersLen()+copy(o.whole[p.HeadersLen():], payload)]
}

// advance notes that the consumer has the first packet.
func (o *outbound) advance() {
	if o.segment++; o.segment >= o.frames.packets[o.frame].Segments() {
		o.frame, o.segment = o.frame+1, 0
	}
}

// deliverTo waits while the channel is full. It returns when all is sent or
// the channel is no longer the tunnel's.
func (o *outbound) deliverTo(ch *channel, transmit func(uintptr) bool) {
	o.ch, o.fail, o.part, o.prefix = ch, 0, 0, 0
	if ch.format == FormatStream {
		o.prefix = lengthSize
	}
	o.gather()
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

// gather makes messages of the packets that the channel does not have yet, as
// many as go at once. A super-packet of which a former channel had a part goes
// as a whole where the format has it whole: packets may come twice.
func (o *outbound) gather() {
	o.out.reset()
	o.sent, o.shown = 0, 0
	from := o.segment
	for i := o.frame; i < o.frames.count; i++ {
		p := &o.frames.packets[i]
		switch {
		case o.out.full(o.prefix + p.HeadersLen()):
			return
		case o.ch.format == FormatOffload:
			o.segment = 0
			o.out.add(nil, p.Message())
			continue
		case !p.Super():
			p.Complete()
			o.add(o.out.reserve(o.prefix), p.Bytes())
			continue
		}
		for n := p.Segments(); from < n; from++ {
			if o.out.full(o.prefix + p.HeadersLen()) {
				return
			}
			head := o.out.reserve(o.prefix + p.HeadersLen())
			o.add(head, p.Segment(from, head[o.prefix:]))
		}
		from = 0
	}
}

// add gathers a packet that begins in head, behind its length where that is
// wanted.
func (o *outbound) add(head, rest []byte) {
	if o.prefix > 0 {
		putLength(head, len(head)-o.prefix+len(rest))
	}
	o.out.add(head, rest)
}

// transmit sends the packets that wait; false: the socket is full.
func (o *outbound) transmit(fd uintptr) bool {
	for o.frame < o.frames.count {
		if o.sent == o.out.count {
			o.gather()
		}
		if all := o.captures.Load(); all != nil {
			o.show(*all)
		}
		n, errno := o.send(fd)
		switch errno {
		case 0:
			packets, bytes := 0, 0
			for range n {
				p, b := o.pass()
				packets, bytes = packets+p, bytes+b
			}
			o.stats.sent(packets, bytes)
		case unix.EAGAIN:
			return false
		case unix.EMSGSIZE: // the client's own socket has a tiny buffer
			packets, _ := o.pass()
			o.stats.drop(tooBig, packets)
		case unix.ENOBUFS, unix.ENOMEM:
			if o.part > 0 { // the rest of it has to follow
				o.fail = errno
				return true
			}
			packets, _ := o.pass()
			o.stats.drop(write, packets)
		default:
			o.fail = errno
			return true
		}
	}
	return true
}

// send sends messages that wait and returns how many of them the socket has
// whole then.
func (o *outbound) send(fd uintptr) (whole int, errno unix.Errno) {
	if o.ch.format != FormatStream {
		return o.out.send(fd, o.sent)
	}
	n, errno := o.out.sendBytes(fd, o.sent, o.part)
	if errno != 0 {
		return 0, errno
	}
	for n += o.part; o.sent+whole < o.out.count; whole++ {
		message := size(o.out.parts(o.sent + whole))
		if n < message {
			break
		}
		n -= message
	}
	o.part = n
	return whole, 0
}

// show shows the messages that wait to captures, each once.
func (o *outbound) show(all []*capture) {
	skip := o.ch.format.overhead()
	for o.shown = max(o.shown, o.sent); o.shown < o.out.count; o.shown++ {
		record(all, outgoing, skip, o.out.parts(o.shown))
	}
}

// pass takes the first message that waits off, and tells of how many packets
// with how many bytes it was.
func (o *outbound) pass() (packets, bytes int) {
	o.sent++
	if o.ch.format == FormatOffload {
		p := &o.frames.packets[o.frame]
		o.frame++
		return p.Segments(), p.Total()
	}
	o.advance()
	return 1, size(o.out.parts(o.sent-1)) - o.prefix
}
