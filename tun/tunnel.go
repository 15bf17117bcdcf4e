package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// ErrClosed is returned by the methods of a Tunnel after Close.
var ErrClosed = errors.New("tunnel is closed")

// Link is what a Tunnel needs of a TUN: a nonblocking descriptor known to
// Go's poller that transfers one packet per read and write. Closing it ends
// reads and writes under way. *Device is one; tuntest has another.
//
// A Link that is an Offloader, too, may transfer super-packets.
type Link interface {
	SyscallConn() (syscall.RawConn, error)
	SetReadDeadline(t time.Time) error
	Close() error
}

// Offloader tells which super-packets a Link takes, which never changes.
// Unless it is vnet.NoOffload, there is a virtio_net_hdr before each packet.
type Offloader interface{ Offload() vnet.Offload }

// Events are called from the tunnel's goroutines, without a lock held; either
// may be nil. They may call all methods of the Tunnel. An event that is under
// way when Close is called may still be running when Close returns.
type Events struct {
	// ChannelClosed: the client ended the attached channel; err says how,
	// io.EOF being the usual way. It is called once for such a channel, and
	// never for one that Attach replaced or Close closed. The tunnel lives
	// and takes another channel.
	ChannelClosed func(err error)

	// Failed: the TUN died, for instance because somebody deleted the
	// interface. It is called once. The tunnel moves no packets any more; it
	// still has to be closed.
	Failed func(err error)
}

// Tunnel moves packets between a TUN and the client's channel. All methods
// may be called at any time by any goroutine.
type Tunnel struct {
	link    Link
	device  syscall.RawConn
	offload vnet.Offload
	none    [vnet.HeaderLen]byte // the virtio_net_hdr of a packet as it is
	events  Events
	stats   counters

	filter  atomic.Pointer[filter]
	channel atomic.Pointer[channel]
	sink    atomic.Pointer[func([]byte) error]

	captures atomic.Pointer[[]*capture] // nil: none; changed with attaching held

	attaching sync.Mutex // Attach and captures against Close; never held while waiting
	closed    atomic.Bool
	running   sync.WaitGroup

	closing  sync.Once
	closeErr error
}

// New starts a tunnel on the device and takes it over; if New fails, it stays
// the caller's. The caller must Close the tunnel.
func New(link Link, events Events) (*Tunnel, error) {
	device, err := link.SyscallConn()
	if err == nil {
		err = link.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use the TUN: %w", err)
	}
	t := &Tunnel{link: link, device: device, events: events}
	if o, ok := link.(Offloader); ok {
		t.offload = o.Offload()
	}
	t.running.Add(1)
	go t.runOutbound()
	return t, nil
}

// SetPolicy replaces the policy, for every packet from now on. Before the
// first one every packet is dropped as notConfigured. On error the policy
// stays as it was.
func (t *Tunnel) SetPolicy(p Policy) error {
	if t.closed.Load() {
		return ErrClosed
	}
	f, err := newFilter(p)
	if err != nil {
		return err
	}
	t.filter.Store(f)
	return nil
}

// Attach makes ch the tunnel's channel, with messages of the format, and closes
// the former one. It takes ch over, and closes it also when it fails.
func (t *Tunnel) Attach(ch *os.File, format Format) error {
	c, err := newChannel(ch, format)
	if err != nil {
		return fmt.Errorf("cannot attach: %w", err)
	}
	t.attaching.Lock()
	if t.closed.Load() {
		t.attaching.Unlock()
		c.file.Close()
		return ErrClosed
	}
	former := t.channel.Swap(c)
	t.running.Add(1)
	t.attaching.Unlock()
	go t.runInbound(c)
	switch {
	case former == nil:
	case former.is(c): // the client has brought the same socket again
		former.file.Close()
	default:
		former.close()
	}
	t.wake()
	return nil
}

// Attached says whether there is a channel that has not ended.
func (t *Tunnel) Attached() bool { return t.channel.Load() != nil }

// SetSink makes sink get the packets from the TUN while no channel is
// attached, one at a time, from one goroutine. A packet is valid only during
// the call, which may block; one for which it returns an error is lost and
// not counted as sent. Close waits for a call under way, so whatever sink
// waits for must end then. A nil sink: the TUN is not read while no channel
// is attached. A call of the former sink that is under way goes on.
func (t *Tunnel) SetSink(sink func(packet []byte) error) {
	if sink == nil {
		t.sink.Store(nil)
		return
	}
	t.sink.Store(&sink)
	t.wake()
}

// Send puts one packet into the TUN, as if it had come through the channel,
// and does not keep it. The error is a *DropError when the packet is refused,
// ErrClosed after Close.
func (t *Tunnel) Send(packet []byte) error {
	if t.closed.Load() {
		return ErrClosed
	}
	if r := t.filter.Load().fromClient(packet); r != pass {
		t.stats.drop(r, 1)
		return &DropError{Reason: r.String()}
	}
	var parts [2]unix.Iovec
	setPart(&parts[0], t.none[:])
	setPart(&parts[1], packet)
	if all := t.captures.Load(); all != nil {
		record(*all, incoming, 0, parts[1:])
	}
	var errno unix.Errno
	err := t.device.Write(func(fd uintptr) bool {
		errno = t.writeFrame(fd, parts[:])
		return errno != unix.EAGAIN
	})
	switch {
	case err != nil && t.closed.Load():
		return ErrClosed
	case err == nil && errno == 0:
		t.stats.received(1, len(packet))
		return nil
	case err == nil:
		err = errno
	}
	t.stats.drop(write, 1)
	return &DropError{Reason: write.String(), Err: err}
}

// Statistics returns the counters since New, also after Close: txPackets and
// txBytes from the host to the client, rxPackets and rxBytes from the client
// to the host, and dropped.<reason> for every reason. The caller owns the map.
func (t *Tunnel) Statistics() map[string]uint64 { return t.stats.snapshot() }

// Close closes the channel and the device and waits until nothing is moved
// any more. It takes as long as closing the device. Closing again waits for
// the same and returns the same error.
func (t *Tunnel) Close() error {
	t.closing.Do(func() {
		t.attaching.Lock()
		t.closed.Store(true)
		ch := t.channel.Swap(nil)
		t.attaching.Unlock()
		if ch != nil {
			ch.close()
		}
		if err := t.link.Close(); err != nil {
			t.closeErr = fmt.Errorf("cannot close the TUN: %w", err)
		}
		t.running.Wait()
		t.endCaptures()
	})
	return t.closeErr
}

// writeFrame writes one frame to the TUN. Its first part is the virtio_net_hdr,
// and nothing else where the TUN has none.
func (t *Tunnel) writeFrame(fd uintptr, parts []unix.Iovec) unix.Errno {
	if t.offload == vnet.NoOffload {
		parts = parts[1:]
	}
	return writeFrame(fd, parts)
}

// wake makes the outbound goroutine look again when it waits for the TUN. An
// error means that the device is closed, and then there is nothing to wake.
func (t *Tunnel) wake() { _ = t.link.SetReadDeadline(time.Unix(1, 0)) }
