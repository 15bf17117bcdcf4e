// Package drivertest has the outside of package driver in memory: a network,
// tunnels, a store and an observer that remember what was asked of them and
// fail when they are told to.
package drivertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/params"
	"github.com/vpnprovider/vpnproviderd/routing"
)

// ErrForced is what a fake fails with.
var ErrForced = errors.New("forced failure")

// Panic makes Tunnel.Send panic where it fails.
const Panic = "panic"

// World is all that a Manager needs. Its methods may be called concurrently.
type World struct {
	mu       sync.Mutex
	log      []string
	records  map[driver.ConfigID]driver.Record
	consents map[uint32][]string
	fail     map[string]bool
	hold     map[string]chan struct{}
	network  routing.Config
	locked   bool
	ways     map[netip.Addr]driver.Way
	dns      *routing.Resolution
	splits   bool
	tunnels  []*Tunnel
	sessions driver.SessionID
	kept     []byte
	observe  func(driver.Notice)

	// Facts are the host's.
	HostFacts params.Host
}

// New makes a world in which nothing fails.
func New() *World {
	return &World{
		records: make(map[driver.ConfigID]driver.Record), consents: make(map[uint32][]string), fail: make(map[string]bool), hold: make(map[string]chan struct{}),
	}
}

// Options for a Manager in this world.
func (w *World) Options() driver.Options {
	return driver.Options{
		Network: w, Host: w, Opener: w, Store: w, Consents: w, Observer: w, Packets: w, Keep: w.keep,
		NextSession: func() (driver.SessionID, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.sessions++
			return w.sessions, nil
		},
	}
}

// Fail makes what fail, or work again: "open", "adopt", "apply", "undo", "lock",
// "unlock", "resume", "sweep", "permit", "attach", "save", "delete", "consent", "keep", "facts",
// "way".
func (w *World) Fail(what string, fails bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[what] = fails
}

// Hold makes what wait until release is called, or its context ends.
func (w *World) Hold(what string) (release func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gate := make(chan struct{})
	w.hold[what] = gate
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.hold[what] == gate {
			delete(w.hold, what)
		}
		close(gate)
	}
}

func (w *World) enter(ctx context.Context, what string) error {
	w.mu.Lock()
	gate, fails := w.hold[what], w.fail[what]
	w.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fails {
		return fmt.Errorf("%s: %w", what, ErrForced)
	}
	return nil
}

// Log gives what was observed since the last call, a line each.
func (w *World) Log() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	log := w.log
	w.log = nil
	return log
}

func (w *World) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

// Applied is the network as it is now.
func (w *World) Applied() routing.Config {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.network
}

// Apply is driver.Network.
func (w *World) Apply(ctx context.Context, want routing.Config) error {
	what := "apply"
	if want.Link.Index == 0 {
		what = "undo"
	}
	if err := w.enter(ctx, what); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.network = want
	w.log = append(w.log, what)
	return nil
}

// Lock is driver.Network.
func (w *World) Lock(ctx context.Context, on bool) error {
	what := "unlock"
	if on {
		what = "lock"
	}
	if err := w.enter(ctx, what); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.locked = on
	w.log = append(w.log, what)
	return nil
}

// Locked is driver.Network.
func (w *World) Locked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.locked
}

// SetWay says what becomes of a destination.
func (w *World) SetWay(dst string, way driver.Way) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ways == nil {
		w.ways = make(map[netip.Addr]driver.Way)
	}
	w.ways[netip.MustParseAddr(dst)] = way
}

// SetResolution says what is in the host's DNS.
func (w *World) SetResolution(r *routing.Resolution, splits bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dns, w.splits = r, splits
}

// Way is driver.Host.
func (w *World) Way(ctx context.Context, dst netip.Addr, _ uint32) (driver.Way, error) {
	if err := w.enter(ctx, "way"); err != nil {
		return driver.Way{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ways[dst], nil
}

// Resolution is driver.Host.
func (w *World) Resolution() (r *routing.Resolution, splits bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dns, w.splits
}

// Facts is driver.Host.
func (w *World) Facts(ctx context.Context, _ int) (params.Host, error) {
	return w.HostFacts, w.enter(ctx, "facts")
}

// Protect is driver.Host.
func (w *World) Protect(socket *os.File, bound []netip.Addr) error {
	w.note("protect %s not from %v", socket.Name(), bound)
	return nil
}

// Open is driver.Opener.
func (w *World) Open(ctx context.Context, slot int, events driver.TunnelEvents) (routing.Link, driver.Tunnel, error) {
	if err := w.enter(ctx, "open"); err != nil {
		return routing.Link{}, nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t := &Tunnel{world: w, Slot: slot, Events: events}
	w.tunnels = append(w.tunnels, t)
	return linkOf(slot), t, nil
}

// NewChannel is driver.Opener: a pipe stands for the pair.
func (w *World) NewChannel(driver.ChannelFormat) (ours, theirs *os.File, err error) { return os.Pipe() }

// CheckChannel is driver.Opener.
func (w *World) CheckChannel(*os.File) error { return w.enter(context.Background(), "check") }

// Tunnel gives the last tunnel that was opened.
func (w *World) Tunnel() *Tunnel {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tunnels[len(w.tunnels)-1]
}

// OpenTunnels counts those that were not closed.
func (w *World) OpenTunnels() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.tunnels {
		if !t.closed {
			n++
		}
	}
	return n
}

// Load is driver.Store.
func (w *World) Load() ([]driver.Record, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.records)), nil
}

// Save is driver.Store.
func (w *World) Save(r driver.Record) error {
	if err := w.enter(context.Background(), "save"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records[r.ID()] = r
	return nil
}

// Delete is driver.Store.
func (w *World) Delete(_ uint32, id driver.ConfigID) error {
	if err := w.enter(context.Background(), "delete"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.records, id)
	return nil
}

// LoadConsents is driver.Consents.
func (w *World) LoadConsents() (map[uint32][]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.consents), nil
}

// SaveConsents is driver.Consents.
func (w *World) SaveConsents(uid uint32, apps []string) error {
	if err := w.enter(context.Background(), "consent"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.consents[uid] = slices.Clone(apps)
	return nil
}

// Receiver is driver.PacketReceiver.
func (w *World) Receiver(_ context.Context, to string, session driver.SessionID) func([]byte) error {
	return func(packet []byte) error {
		w.note("packet %x of session %d to %s", packet, session, to)
		return nil
	}
}

// OnObserve has f look at all that is told, before anything else.
func (w *World) OnObserve(f func(driver.Notice)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.observe = f
}

// Observe is driver.Observer.
func (w *World) Observe(n driver.Notice) {
	w.mu.Lock()
	look := w.observe
	w.mu.Unlock()
	if look != nil {
		look(n)
	}
	switch n := n.(type) {
	case driver.ConfigAdded:
		w.note("added config %s", n.Config.Name)
	case driver.ConfigChanged:
		w.note("config %s: %s session %d %q", n.After.Name, n.After.State, n.After.Session, n.After.FailureReason)
	case driver.ConfigGone:
		w.note("gone config %s", n.Config.Name)
	case driver.HealthChanged:
		var codes []string
		for _, p := range n.Problems {
			codes = append(codes, p.Code+" "+p.Severity)
		}
		w.note("health %q", codes)
	case driver.SessionAdded:
		w.note("added session %d", n.Session.ID)
	case driver.SessionChanged:
		w.note("session %d: %s", n.After.ID, n.After.State)
	case driver.SessionGone:
		w.note("gone session %d", n.Session.ID)
	case driver.PlatformMessage:
		w.note("%s gets %s %q of session %d", n.To, n.Message, n.Error, n.Session)
	case driver.ConfigCreated:
		w.note("%s gets created %s", n.To, n.Config.Name)
	case driver.ConfigRemoved:
		w.note("%s gets removed %s", n.To, n.Name)
	case driver.StartProvider:
		w.note("%s gets start %s", n.To, n.App)
	case driver.UIEvent:
		w.note("%s gets %s %q", n.To, n.Event, n.Config)
	}
}

// Tunnel is a driver.Tunnel that remembers.
type Tunnel struct {
	world  *World
	Slot   int
	Events driver.TunnelEvents

	traffic driver.Traffic
	channel *os.File
	format  driver.ChannelFormat
	closed  bool

	captures int
}

// Permit is driver.Tunnel.
func (t *Tunnel) Permit(traffic driver.Traffic) error {
	if err := t.world.enter(context.Background(), "permit"); err != nil {
		return err
	}
	t.world.mu.Lock()
	defer t.world.mu.Unlock()
	t.traffic = traffic
	return nil
}

// Traffic is what was permitted last.
func (t *Tunnel) Traffic() driver.Traffic {
	t.world.mu.Lock()
	defer t.world.mu.Unlock()
	return t.traffic
}

// Attach is driver.Tunnel.
func (t *Tunnel) Attach(ch *os.File, format driver.ChannelFormat) error {
	if err := t.world.enter(context.Background(), "attach"); err != nil {
		return errors.Join(err, ch.Close())
	}
	t.world.mu.Lock()
	defer t.world.mu.Unlock()
	if t.channel != nil {
		t.channel.Close()
	}
	t.channel, t.format = ch, format
	return nil
}

// Attached is driver.Tunnel.
func (t *Tunnel) Attached() bool {
	t.world.mu.Lock()
	defer t.world.mu.Unlock()
	return t.channel != nil
}

// EndChannel has the client end the channel.
func (t *Tunnel) EndChannel(err error) {
	t.LoseChannel()
	t.Events.ChannelClosed(err)
}

// Format is that of the channel that was attached last.
func (t *Tunnel) Format() driver.ChannelFormat {
	t.world.mu.Lock()
	defer t.world.mu.Unlock()
	return t.format
}

// Send is driver.Tunnel.
func (t *Tunnel) Send(packet []byte) error {
	if err := t.world.enter(context.Background(), Panic); err != nil {
		panic(err)
	}
	t.world.note("sent %x", packet)
	return nil
}

// Statistics is driver.Tunnel.
func (t *Tunnel) Statistics() map[string]uint64 { return map[string]uint64{"txPackets": 1} }

// Capture is driver.Capturer: what it gives has nothing to read and ends at
// once. The third is one too many.
func (t *Tunnel) Capture() (*os.File, error) {
	t.world.mu.Lock()
	defer t.world.mu.Unlock()
	if t.captures++; t.captures > 2 {
		return nil, driver.ErrCaptures
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return r, w.Close()
}

// Close is driver.Tunnel.
func (t *Tunnel) Close() error {
	t.world.mu.Lock()
	defer t.world.mu.Unlock()
	t.closed = true
	if t.channel != nil {
		t.channel.Close()
		t.channel = nil
	}
	return nil
}
