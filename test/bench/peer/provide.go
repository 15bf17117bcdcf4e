package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/bench"
)

// Modes of provide, beside the formats of the channel.
const (
	overBus = "dbus"    // every packet is a message on the bus
	each    = "each"    // format packet, with one packet a system call
	library = "library" // whatever format the library chooses, which makes packets of it
)

// calls is how many SendPacket are under way at a time: with one, the wait for
// its answer is what would be measured.
const calls = 32

const (
	app        = "org.example.Bench"
	configName = "Bench"
)

// provide is an app that moves packets between its session and a TUN, in the
// way o.mode, until the session ends.
func provide(o options) (r bench.Result, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := register(ctx, o, client.ProviderOptions{PacketSignals: o.mode == overBus})
	if err != nil {
		return r, err
	}
	defer p.client.Close()
	s, err := p.connect(ctx)
	if err != nil {
		return r, err
	}
	if _, err := s.SetParameters(ctx, parameters(1500)); err != nil {
		return r, err
	}
	if o.mode == overBus {
		return r, provideOverBus(ctx, s)
	}
	format := o.mode
	switch format {
	case each:
		format = wire.FormatPacket
	case library:
		format = ""
	}
	ch, err := s.OpenChannel(ctx, client.ChannelOptions{Format: format})
	if err != nil {
		return r, err
	}
	if err := s.NotifyConnected(ctx); err != nil {
		return r, err
	}
	return r, provideChannel(ch, o.mode)
}

// provideChannel has messages pass as they are, or in batches, with the
// super-packets of the TUN taken apart and put together.
func provideChannel(ch *client.Channel, mode string) error {
	if mode == wire.FormatPacket || mode == library {
		far, err := burstDevice(firstFile)
		if err != nil {
			return err
		}
		near := &channelBatches{channel: ch}
		ready()
		return both(func() error { return copyBatches(near, far, packetSize) }, func() error { return copyBatches(far, near, packetSize) })
	}
	far, err := inherited(firstFile)
	if err != nil {
		return err
	}
	toFar := func() error { return copyEach(ch, far) }
	if mode == wire.FormatOffload {
		toFar = func() error { return copyMessages(ch, far) }
	}
	ready()
	return both(toFar, func() error { return copyEach(far, ch) })
}

// copyMessages is copyEach that receives as many as the daemon sends at a time.
func copyMessages(from *client.Channel, to stream) error {
	bufs, sizes := make([][]byte, from.Info().Batch), make([]int, from.Info().Batch)
	for i := range bufs {
		bufs[i] = make([]byte, from.Info().MaxMessage)
	}
	for {
		n, err := from.ReadPackets(bufs, sizes)
		if err != nil {
			return err
		}
		for i, size := range sizes[:n] {
			_, _ = to.Write(bufs[i][:size])
		}
	}
}

// channelBatches moves packets as wireguard-go does. Read and Write each have
// one caller.
type channelBatches struct {
	channel *client.Channel
	rx, tx  [][]byte
}

func (c *channelBatches) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	c.rx = c.rx[:0]
	for _, b := range bufs {
		c.rx = append(c.rx, b[offset:])
	}
	return c.channel.ReadPackets(c.rx, sizes)
}

func (c *channelBatches) Write(bufs [][]byte, offset int) (int, error) {
	c.tx = c.tx[:0]
	for _, b := range bufs {
		c.tx = append(c.tx, b[offset:])
	}
	return c.channel.WritePackets(c.tx)
}

func provideOverBus(ctx context.Context, s *client.Session) error {
	far, err := inherited(firstFile)
	if err != nil {
		return err
	}
	if err := s.NotifyConnected(ctx); err != nil {
		return err
	}
	for range calls {
		go func() {
			buf := make([]byte, largest)
			for {
				n, err := far.Read(buf)
				if err != nil {
					return
				}
				// What the filter refuses is lost.
				_ = s.SendPacket(context.Background(), buf[:n])
			}
		}()
	}
	ready()
	for packet := range s.Packets() {
		_, _ = far.Write(packet)
	}
	return errors.New("the session ended")
}

// provider is an app of ours, with its one config.
type provider struct {
	client *client.Client
	events <-chan client.Event
	config *client.Config
}

func register(ctx context.Context, o options, options client.ProviderOptions) (*provider, error) {
	c, err := client.Dial(ctx, client.WithAddress(o.bus))
	if err != nil {
		return nil, err
	}
	p, err := c.RegisterProvider(ctx, app, options)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	config, err := p.CreateConfig(ctx, configName, client.ConfigOptions{})
	if errors.Is(err, client.ErrAlreadyExists) {
		config, err = p.FindConfig(ctx, configName)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &provider{client: c, events: p.Events(), config: config}, nil
}

// connect connects the config, as its user would, and returns the session.
func (p *provider) connect(ctx context.Context) (*client.Session, error) {
	if _, err := p.config.Connect(ctx); err != nil {
		return nil, err
	}
	for {
		select {
		case event, ok := <-p.events:
			if !ok {
				return nil, errors.New("the provider ended")
			}
			if started, ok := event.(client.SessionStarted); ok {
				return started.Session, nil
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("no session came: %w", ctx.Err())
		}
	}
}

// parameters have the addresses of the beds, and more routes where they are
// asked for.
func parameters(mtu uint32, more ...netip.Prefix) client.Parameters {
	return client.Parameters{
		Addresses:     []netip.Prefix{netip.MustParsePrefix(bench.Near + "/30")},
		InclusionList: append([]netip.Prefix{netip.MustParsePrefix(bench.Far + "/32")}, more...),
		MTU:           mtu,
	}
}

// connect is an app that is connected o.count times. It times from the user's
// call of Connect to the answer to SetParameters, when packets flow.
func connect(o options) (r bench.Result, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := register(ctx, o, client.ProviderOptions{})
	if err != nil {
		return r, err
	}
	defer p.client.Close()
	var routes []netip.Prefix
	for i := range byte(9) { // and the one of all
		routes = append(routes, netip.PrefixFrom(netip.AddrFrom4([4]byte{44, 2 * i, 0, 0}), 24))
	}
	usage, err := bench.StartUsage(o.pids, nil)
	if err != nil {
		return r, err
	}
	var all []time.Duration
	for range o.count {
		start := time.Now()
		s, err := p.connect(ctx)
		if err != nil {
			return r, err
		}
		if _, err := s.SetParameters(ctx, parameters(1500, routes...)); err != nil {
			return r, err
		}
		all = append(all, time.Since(start))
		if err := p.config.Disconnect(ctx); err != nil {
			return r, err
		}
	}
	slices.Sort(all)
	r.P50 = all[len(all)/2]
	return r, usage.Stop(&r)
}
