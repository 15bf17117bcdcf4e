package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/vpnprovider/vpnproviderd/cmd/vpnproviderd/internal/fdstore"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/rtnl"
	"github.com/vpnprovider/vpnproviderd/tun"
)

// opener is driver.Opener. What it opens is in the store, where the next process
// finds it.
type opener struct {
	store  *fdstore.Store
	kernel *rtnl.Kernel
	making *sync.Mutex // held while a TUN is made
	log    *slog.Logger
}

// Open makes vpn<slot>. A name that another program has is skipped.
func (o opener) Open(_ context.Context, slot int, events driver.TunnelEvents) (routing.Link, driver.Tunnel, error) {
	number := slot
	for ; inUse(name(number)); number += driver.Slots {
		if number > 1<<16 {
			return routing.Link{}, nil, fmt.Errorf("the names %s, %s … are in use", name(slot), name(slot+driver.Slots))
		}
	}
	o.making.Lock()
	device, err := tun.Open(name(number))
	o.making.Unlock()
	if err != nil {
		return routing.Link{}, nil, err
	}
	link := routing.Link{Name: device.Name(), Index: device.Index(), Slot: slot}
	if err := o.store.Put(tunKey(link), device); err != nil {
		o.log.Error("the session would not outlive a restart", "interface", link.Name, "error", err)
	}
	t, err := o.serve(device, link, events)
	if err != nil {
		return routing.Link{}, nil, err
	}
	return link, t, nil
}

// Adopt is driver.Opener. The channel is attached once the filter is set: until
// then its packets wait. A TUN that cannot go on is not kept any longer.
func (o opener) Adopt(link routing.Link, passes *driver.Traffic, events driver.TunnelEvents) (_ driver.Tunnel, _ bool, err error) {
	defer func() {
		if err != nil {
			o.store.Remove(tunKey(link))
		}
	}()
	files := o.store.Take(tunKey(link))
	if len(files) != 1 {
		for _, f := range files {
			f.Close()
		}
		return nil, false, fmt.Errorf("the TUN of %s was not kept", link.Name)
	}
	device, err := tun.Adopt(files[0])
	if err != nil {
		return nil, false, err
	}
	if device.Index() != link.Index {
		return nil, false, errors.Join(fmt.Errorf("%s is not the link %d", device.Name(), link.Index), device.Close())
	}
	t, err := o.serve(device, link, events)
	if err != nil {
		return nil, false, err
	}
	if passes != nil {
		if err := t.Permit(*passes); err != nil {
			return nil, false, errors.Join(err, t.Close())
		}
	}
	t.adoptChannel()
	return t, t.Attached(), nil
}

// serve takes the device over.
func (o opener) serve(device *tun.Device, link routing.Link, events driver.TunnelEvents) (*tunnel, error) {
	t := &tunnel{opener: o, link: link, events: events}
	var err error
	t.Tunnel, err = tun.New(device, tun.Events{ChannelClosed: t.channelClosed, Failed: events.Failed})
	if err != nil {
		o.store.Remove(tunKey(link))
		return nil, errors.Join(err, device.Close())
	}
	if events.Packet != nil {
		t.SetSink(events.Packet)
	}
	return t, nil
}

func name(number int) string { return "vpn" + strconv.Itoa(number) }

func inUse(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

// NewChannel is driver.Opener.
func (opener) NewChannel(format driver.ChannelFormat) (ours, theirs *os.File, err error) {
	return tun.NewChannel(formatOf(format))
}

func formatOf(format driver.ChannelFormat) tun.Format {
	switch format {
	case driver.FormatOffload:
		return tun.FormatOffload
	case driver.FormatStream:
		return tun.FormatStream
	case driver.FormatPacket:
	}
	return tun.FormatPacket
}

// CheckChannel is driver.Opener.
func (opener) CheckChannel(f *os.File) error { return tun.CheckChannel(f) }

// tunKey and channelKey are the names in the store.
func tunKey(link routing.Link) string { return "tun." + strconv.Itoa(link.Index) }

func channelKey(link routing.Link, format driver.ChannelFormat) string {
	kind := "packet"
	if format == driver.FormatOffload {
		kind = "offload"
	}
	return "channel." + strconv.Itoa(link.Index) + "." + kind
}

// keeps says whether a channel of the format can go on in another process: a
// kill may come within a packet of a stream, and then nobody knows where the
// next one begins. Its client sees the end, and brings another one.
func keeps(format driver.ChannelFormat) bool { return format != driver.FormatStream }

// tunnel is driver.Tunnel and driver.Capturer.
type tunnel struct {
	*tun.Tunnel
	opener
	link   routing.Link
	events driver.TunnelEvents

	mu      sync.Mutex
	channel string // its name in the store, where it is there
}

// Capture gives the session's packets as a stream.
func (t *tunnel) Capture() (*os.File, error) {
	stream, err := t.Tunnel.Capture(t.link.Name)
	if errors.Is(err, tun.ErrCaptures) {
		return nil, driver.ErrCaptures
	}
	return stream, err
}

// Attach takes the client's channel over. The former one leaves the store first:
// it may be the same socket, which is there once.
func (t *tunnel) Attach(ch *os.File, format driver.ChannelFormat) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetChannel()
	if keeps(format) {
		if err := t.store.Put(channelKey(t.link, format), ch); err != nil {
			t.log.Error("the channel would not outlive a restart", "interface", t.link.Name, "error", err)
		}
		t.channel = channelKey(t.link, format)
	}
	return t.Tunnel.Attach(ch, formatOf(format))
}

func (t *tunnel) adoptChannel() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, format := range []driver.ChannelFormat{driver.FormatPacket, driver.FormatOffload} {
		for _, f := range t.store.Take(channelKey(t.link, format)) {
			t.channel = channelKey(t.link, format)
			if err := t.Tunnel.Attach(f, formatOf(format)); err != nil {
				t.log.Warn("the channel does not go on", "interface", t.link.Name, "error", err)
				t.forgetChannel()
			}
		}
	}
}

// forgetChannel must be called with mu held.
func (t *tunnel) forgetChannel() {
	if t.channel != "" {
		t.store.Remove(t.channel)
		t.channel = ""
	}
}

// channelClosed tells of the end of a channel that no other one has followed. One
// may follow before that is heard: who is told asks Attached.
func (t *tunnel) channelClosed(err error) {
	t.mu.Lock()
	replaced := t.Attached()
	if !replaced {
		t.forgetChannel()
	}
	t.mu.Unlock()
	if !replaced {
		t.events.ChannelClosed(err)
	}
}

// Permit sets the packet filter.
func (t *tunnel) Permit(p driver.Traffic) error {
	return t.SetPolicy(tun.Policy{Addresses: p.Addresses, Include: p.Include, Exclude: p.Exclude, Host: p.Host, MTU: p.MTU})
}

// Close removes the interface, which the copy in the store would keep for as
// long as systemd takes to close that.
func (t *tunnel) Close() error {
	t.mu.Lock()
	t.forgetChannel()
	t.mu.Unlock()
	t.store.Remove(tunKey(t.link))
	err := t.Tunnel.Close()
	if t.store.Active() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		gone := []routing.Op{{Verb: routing.Delete, Object: routing.LinkState{Index: t.link.Index}}}
		err = errors.Join(err, errors.Join(t.kernel.Execute(ctx, gone)...))
	}
	return err
}
