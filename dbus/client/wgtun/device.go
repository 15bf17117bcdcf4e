// Package wgtun runs wireguard-go on a session of vpnproviderd: Device takes
// the place of the TUN device that wireguard-go would need privileges for, and
// Bind keeps its UDP sockets out of the tunnel, so that a server may lie within
// what is included.
//
//	dev, err := wgtun.Open(ctx, session)
//	…
//	wg := device.NewDevice(dev, wgtun.NewBind(session), logger)
//	err = wg.IpcSet(…)
//	err = wg.Up()
//	warnings, err := dev.SetParameters(ctx, parameters)
//	…
//	wg.Close() // closes dev, too
//
// When the session ends, wireguard-go finds its device closed, and closes
// itself. After a change of the physical network (client.MessageLinkUp,
// MessageLinkChanged, MessageResume) call wg.BindUpdate, then SetParameters
// again.
package wgtun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// batchSize is how many packets one Read or Write moves at most: wireguard-go
// makes its own batches as large as the larger of device and bind want them.
const batchSize = 128

// Device is a wireguard-go tun.Device on a session. Its methods may be called
// from several goroutines; reads take turns, and so do writes. No packet
// allocates. After Close, and after the end of the session, reading and
// writing give os.ErrClosed.
type Device struct {
	session *client.Session
	channel *client.Channel
	name    string
	format  format

	mu     sync.Mutex
	up     bool
	mtu    int // what wireguard-go was told
	closed bool
	events chan tun.Event // with room for one, which tell fills
}

// format moves the packets that wireguard-go has, each at an offset in its
// buffer, as messages of a channel. The errors are the channel's.
type format interface {
	read(bufs [][]byte, sizes []int, offset int) (int, error)
	write(bufs [][]byte, offset int) (int, error)
}

// Open opens the packet channel of a session, in the best format that the
// daemon has. The caller must close the Device; that ends the session, unless
// another channel is opened soon.
func Open(ctx context.Context, s *client.Session) (*Device, error) {
	d, err := OpenFormat(ctx, s, wire.FormatOffload)
	if errors.Is(err, client.ErrNotSupported) || errors.Is(err, client.ErrInvalidParameter) {
		return OpenFormat(ctx, s, wire.FormatPacket) // an older daemon, or kernel
	}
	return d, err
}

// OpenFormat is Open with a certain format: wire.FormatPacket or
// wire.FormatOffload.
func OpenFormat(ctx context.Context, s *client.Session, name string) (*Device, error) {
	p, err := s.Properties(ctx)
	if err != nil {
		return nil, err
	}
	ch, err := s.OpenChannel(ctx, client.ChannelOptions{Format: name})
	if err != nil {
		return nil, err
	}
	f, err := formatOf(ch)
	if err != nil {
		_ = ch.Close()
		return nil, err
	}
	return &Device{
		session: s,
		channel: ch,
		name:    p.Interface,
		format:  f,
		mtu:     ch.MTU(),
		events:  make(chan tun.Event, 1),
	}, nil
}

func formatOf(ch *client.Channel) (format, error) {
	switch info := ch.Info(); info.Format {
	case wire.FormatPacket:
		return newPackets(ch), nil
	case wire.FormatOffload:
		return newSuperPackets(ch, info.Batch, info.MaxMessage), nil
	default:
		return nil, fmt.Errorf("cannot use a packet channel of the format %q", info.Format)
	}
}

// SetParameters is Session.SetParameters, of which wireguard-go learns: it is
// up from the first success on, and follows the MTU.
func (d *Device) SetParameters(ctx context.Context, p client.Parameters) (warnings []string, err error) {
	if warnings, err = d.session.SetParameters(ctx, p); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if mtu := d.channel.MTU(); mtu != d.mtu {
		d.mtu = mtu
		d.tell(tun.EventMTUUpdate)
	}
	if !d.up {
		d.up = true
		d.tell(tun.EventUp)
	}
	return warnings, nil
}

// tell adds to the event that waits, so it never blocks. d.mu is held.
func (d *Device) tell(e tun.Event) {
	if d.closed {
		return
	}
	select {
	case waiting := <-d.events:
		e |= waiting
	default:
	}
	d.events <- e
}

// Read implements tun.Device: it waits for packets from the host. A packet
// that its buffer does not hold has size 0, and is lost.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.format.read(bufs, sizes, offset)
	return n, asClosed(err)
}

// Write implements tun.Device: it returns when all packets are with the
// daemon. Empty ones are skipped.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	n, err := d.format.write(bufs, offset)
	return n, asClosed(err)
}

// asClosed gives the end of a session the name that wireguard-go knows.
func asClosed(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
		return os.ErrClosed
	}
	return err
}

// BatchSize implements tun.Device.
func (d *Device) BatchSize() int { return batchSize }

// MTU implements tun.Device: that of the last SetParameters, in bytes.
func (d *Device) MTU() (int, error) { return d.channel.MTU(), nil }

// Name implements tun.Device: that of the session's interface.
func (d *Device) Name() (string, error) { return d.name, nil }

// File implements tun.Device. There is no file to work with: it is nil.
func (d *Device) File() *os.File { return nil }

// Events implements tun.Device. There is no EventDown: a session that is not up
// any more has ended, which closes the device.
func (d *Device) Events() <-chan tun.Event { return d.events }

// Close closes the packet channel and the events. More than once is fine.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	close(d.events)
	return d.channel.Close()
}

var _ tun.Device = (*Device)(nil)
