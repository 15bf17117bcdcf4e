package tun

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxCaptures is how many a tunnel has at once.
	MaxCaptures = 4

	// captureBuffer is how many bytes wait for a reader, besides what the pipe
	// holds and what is being written to it.
	captureBuffer = 1 << 20

	// captureLinger is how long a reader has, at the end, for what waits.
	captureLinger = time.Second
)

// ErrCaptures is returned by Capture when there are MaxCaptures already.
var ErrCaptures = errors.New("there are too many captures")

// capture copies packets to a pipe. What its reader does not take in time is
// dropped and counted.
type capture struct {
	pipe *os.File
	more chan struct{} // something waits, or it has ended

	mu       sync.Mutex // never held while waiting
	waiting  []byte     // blocks, of captureBuffer bytes at most
	received uint64     // packets
	dropped  uint64     // of received
	lost     uint64     // of dropped, since the last that was not
	ended    bool
}

// Capture returns the end to read of a pipe with the packets that pass from
// now on, in pcapng, from an interface of that name. The caller owns it;
// closing it ends the capture, as does Close of the tunnel, which leaves
// readers a second for what waits. Packets are copied before they are handed
// on, so that an answer comes after its question; super-packets are one, as
// the TUN has them. A reader that is too slow misses packets, and holds up
// nothing; the stream tells how many. The errors are ErrClosed, ErrCaptures,
// and those of making a pipe.
func (t *Tunnel) Capture(name string) (*os.File, error) {
	t.attaching.Lock()
	defer t.attaching.Unlock()
	var others []*capture
	if all := t.captures.Load(); all != nil {
		others = *all
	}
	switch {
	case t.closed.Load():
		return nil, ErrClosed
	case len(others) >= MaxCaptures:
		return nil, ErrCaptures
	}
	// The reader's end blocks, as programs expect it of a pipe; ours does not.
	var ends [2]int
	err := unix.Pipe2(ends[:], unix.O_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(ends[1], true)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	c := &capture{pipe: os.NewFile(uintptr(ends[1]), "capture"), more: make(chan struct{}, 1)}
	c.waiting = appendHead(make([]byte, 0, captureBuffer), name)
	c.more <- struct{}{}
	all := append(slices.Clip(others), c)
	t.captures.Store(&all)
	go func() {
		c.write()
		t.forget(c)
	}()
	go c.watch()
	return os.NewFile(uintptr(ends[0]), "capture"), nil
}

// forget takes a capture that has ended off.
func (t *Tunnel) forget(c *capture) {
	t.attaching.Lock()
	defer t.attaching.Unlock()
	all := t.captures.Load()
	if all == nil {
		return
	}
	left := slices.DeleteFunc(slices.Clone(*all), func(other *capture) bool { return other == c })
	if len(left) == 0 {
		t.captures.Store(nil)
		return
	}
	t.captures.Store(&left)
}

// endCaptures ends them all, when no packet moves any more.
func (t *Tunnel) endCaptures() {
	if all := t.captures.Swap(nil); all != nil {
		for _, c := range *all {
			c.end()
		}
	}
}

// record copies the packet that lies in parts, behind skip bytes. It keeps
// nothing, allocates nothing and waits for no reader.
func record(all []*capture, d direction, skip int, parts []unix.Iovec) {
	now := time.Now()
	for _, c := range all {
		c.record(now, d, skip, parts)
	}
}

func (c *capture) record(now time.Time, d direction, skip int, parts []unix.Iovec) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.received++
	if len(c.waiting)+min(size(parts)-skip, snapLen)+packetOverhead > captureBuffer {
		c.dropped++
		c.lost++
		return
	}
	c.waiting = appendPacket(c.waiting, now, d, c.lost, skip, parts)
	c.lost = 0
	c.wake()
}

// end lets write end when it has written what waits, or its time is over.
func (c *capture) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	c.waiting = appendStatistics(c.waiting, time.Now(), c.received, c.dropped)
	_ = c.pipe.SetWriteDeadline(time.Now().Add(captureLinger)) // fails where it is closed
	c.wake()
}

func (c *capture) wake() {
	select {
	case c.more <- struct{}{}:
	default:
	}
}

// write hands what waits to the reader, until the end.
func (c *capture) write() {
	spare := make([]byte, 0, captureBuffer)
	for ended := false; !ended; {
		<-c.more
		c.mu.Lock()
		c.waiting, spare, ended = spare[:0], c.waiting, c.ended
		c.mu.Unlock()
		if _, err := c.pipe.Write(spare); err != nil {
			break // there is no reader, or it takes too long to end
		}
	}
	c.end()
	c.pipe.Close()
}

// watch ends the capture when its reader is gone, even if no packet comes.
func (c *capture) watch() {
	pipe, err := c.pipe.SyscallConn()
	if err == nil {
		_ = pipe.Read(func(fd uintptr) bool { // waits for an error: there is nothing to read
			fds := []unix.PollFd{{Fd: int32(fd)}}
			n, err := unix.Poll(fds, 0)
			return err == nil && n > 0
		})
	}
	c.end()
}
