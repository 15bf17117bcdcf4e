package client

import (
	"context"
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// ProviderOptions describe an app to the user and to the daemon.
type ProviderOptions struct {
	DisplayName string
	Icon        string // name in the icon theme

	// PacketSignals has the host's packets sent over the bus (Session.Packets)
	// while no channel is open. For tests and the odd packet.
	PacketSignals bool

	// Replace takes over from another running instance of the app, whose
	// sessions end first. Without it: ErrAlreadyExists.
	Replace bool
}

func (o ProviderOptions) dict() dict {
	d := dict{}
	if o.DisplayName != "" {
		d.set("displayName", o.DisplayName)
	}
	if o.Icon != "" {
		d.set("icon", o.Icon)
	}
	if o.PacketSignals {
		d.set("packetSignals", true)
	}
	if o.Replace {
		d.set("replace", true)
	}
	return d
}

// Event is one of ConfigCreated, ConfigRemoved, UIEvent and SessionStarted.
type Event interface{ event() }

// ConfigCreated says that the administrator or another program of the user
// made a config for the app.
type ConfigCreated struct {
	Config *Config
	Name   string
	Data   map[string]any
}

// ConfigRemoved says that somebody other than the provider removed a config. It
// was there when the daemon said so; when the program takes the event it may be
// gone.
type ConfigRemoved struct {
	Config *Config
	Name   string
}

// UIEventKind is what the user asked the app to show.
type UIEventKind string

// UI events.
const (
	ShowAddDialog       UIEventKind = wire.ShowAddDialog
	ShowConfigureDialog UIEventKind = wire.ShowConfigureDialog
)

// UIEvent asks the app to show something.
type UIEvent struct {
	Kind   UIEventKind
	Config *Config // nil with ShowAddDialog
}

// SessionStarted says that the user connects a config: the platform message
// `connected`. Every method of the session may be called at once. Reach the
// server, then call SetParameters and NotifyConnected; take the session's
// Messages in a goroutine of its own.
type SessionStarted struct{ Session *Session }

func (ConfigCreated) event()  {}
func (ConfigRemoved) event()  {}
func (UIEvent) event()        {}
func (SessionStarted) event() {}

// Provider is a registered app. It ends by Unregister, by Close of its client,
// and when the daemon goes away and is not back within 10 s. A daemon that
// comes back sooner, as it does in an upgrade, finds the provider registered
// again, and its sessions go on.
type Provider struct {
	c       *Client
	app     string
	options ProviderOptions
	events  *queue[Event]
	kick    chan struct{} // the daemon's owner changed; capacity 1
	done    chan struct{} // ended

	// Guarded by c.mu.
	registeredAt string   // owner that knows us
	features     []string // of that owner
	err          error
}

// errSecondProvider is about the signals of the daemon, which do not say which
// of a connection's apps they are for.
var errSecondProvider = errors.New("this client is a provider already: dial another client")

// RegisterProvider makes the client the provider of an app (a reverse-DNS
// name) of the caller's user. A client is one provider at a time. Events that
// the daemon kept for the app come first in Events. After an error of ctx the
// daemon is asked to forget the app; where that came too early for it, the next
// RegisterProvider takes over the session that began meanwhile.
func (c *Client) RegisterProvider(ctx context.Context, app string, o ProviderOptions) (*Provider, error) {
	p := &Provider{c: c, app: app, options: o, kick: make(chan struct{}, 1), done: make(chan struct{})}
	if err := c.addProvider(p); err != nil {
		return nil, fmt.Errorf("cannot register %s: %w", app, err)
	}
	err := p.register(ctx, o)
	if err == nil {
		err = p.adopt(ctx)
	}
	if err != nil {
		p.abandon(ctx, err)
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p.options.Replace = false // once is enough: a later instance may replace us
	if !c.lost {
		c.wg.Go(p.supervise)
	}
	return p, nil
}

// addProvider comes before the call: its events precede the answer.
func (c *Client) addProvider(p *Provider) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost {
		return ErrClosed
	}
	if c.provider != nil {
		return errSecondProvider
	}
	p.events = newQueue[Event](&c.wg, c.stop)
	c.provider = p
	return nil
}

// App is the app id.
func (p *Provider) App() string { return p.app }

// Events of the app, in order and none lost, however long the program takes:
// what is not taken waits, without bound. The channel is closed when the
// provider ends; Err then tells why.
func (p *Provider) Events() <-chan Event { return p.events.out }

// Err is why Events was closed: nil after Unregister, ErrClosed after Close of
// the client or loss of the bus, ErrNotRunning when the daemon went away.
// Before the end it is nil.
func (p *Provider) Err() error {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	return p.err
}

// Unregister ends the app's sessions and gives up the role. What is still in
// Events and Messages may be taken afterwards.
func (p *Provider) Unregister(ctx context.Context) error {
	_, err := p.c.manager(ctx, "UnregisterProvider", []any{p.app, dict{}})
	if err != nil {
		return fmt.Errorf("cannot unregister %s: %w", p.app, err)
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.end(nil)
	return nil
}

// CreateConfig saves a config of the app, with source `provider`.
func (p *Provider) CreateConfig(ctx context.Context, name string, o ConfigOptions) (*Config, error) {
	return p.c.CreateConfig(ctx, p.app, name, o)
}

// FindConfig finds a config of the app.
func (p *Provider) FindConfig(ctx context.Context, name string) (*Config, error) {
	return p.c.FindConfig(ctx, p.app, name)
}

// Configs lists the configs of the app. For root, too, these are its own alone.
func (p *Provider) Configs(ctx context.Context) ([]ConfigInfo, error) {
	uid, err := p.c.ownUID(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot list configs: %w", err)
	}
	all, err := p.c.ListConfigs(ctx)
	var own []ConfigInfo
	for _, info := range all {
		if info.App == p.app && info.Path == configPath(uid, info.App, info.Name) {
			own = append(own, info)
		}
	}
	return own, err
}

// DestroyConfig ends the config's session and removes it. Unlike Config.Remove
// it sends the provider no ConfigRemoved.
func (p *Provider) DestroyConfig(ctx context.Context, cfg *Config) error {
	if _, err := p.c.manager(ctx, "DestroyConfig", []any{godbus.ObjectPath(cfg.path), dict{}}); err != nil {
		return fmt.Errorf("cannot destroy the config: %w", err)
	}
	return nil
}

func (p *Provider) register(ctx context.Context, o ProviderOptions) error {
	var info map[string]godbus.Variant
	seq, err := p.c.manager(ctx, "RegisterProvider", []any{p.app, o.dict()}, &info)
	if err != nil {
		return fmt.Errorf("cannot register %s: %w", p.app, err)
	}
	var features []string
	get(info, "features", &features)
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.features = features
	if p.c.ownerSeq < seq {
		p.registeredAt = p.c.owner
	} else {
		p.registeredAt = "" // the daemon changed after it answered
		p.ownerChanged()
	}
	return nil
}

// providerSignal sorts a signal of the daemon's. c.mu is held.
func (c *Client) providerSignal(sig *godbus.Signal) {
	events := c.provider.events
	var config godbus.ObjectPath
	var text, reason string
	switch sig.Name {
	case wire.ManagerInterface + ".ConfigCreated":
		var data map[string]godbus.Variant
		if godbus.Store(sig.Body, &config, &text, &data) == nil {
			events.push(ConfigCreated{c.Config(string(config)), text, plainDict(data)})
		}
	case wire.ManagerInterface + ".ConfigRemoved":
		if godbus.Store(sig.Body, &config, &text) == nil {
			events.push(ConfigRemoved{c.Config(string(config)), text})
		}
	case wire.ManagerInterface + ".UIEvent":
		if godbus.Store(sig.Body, &text, &config) == nil {
			e := UIEvent{Kind: UIEventKind(text)}
			if config != wire.NoPath {
				e.Config = c.Config(string(config))
			}
			events.push(e)
		}
	case wire.SessionInterface + ".PlatformMessage":
		if godbus.Store(sig.Body, &config, &text, &reason) == nil {
			c.platformMessage(sig, config, text, reason)
		}
	case wire.SessionInterface + ".PacketReceived":
		var packet []byte
		if s := c.sessions[sig.Path]; s != nil && godbus.Store(sig.Body, &packet) == nil {
			select {
			case s.packets <- packet:
			default: // the program is slow, or did not ask for packets
			}
		}
	}
}

// platformMessage starts, serves and ends a session. c.mu is held.
func (c *Client) platformMessage(sig *godbus.Signal, config godbus.ObjectPath, message, reason string) {
	if message == wire.MessageDisconnected {
		c.endings++
	}
	s := c.sessions[sig.Path]
	switch {
	case message == wire.MessageConnected:
		c.startSession(string(sig.Path), string(config), sig.Sequence)
	case s != nil:
		s.messages.push(Message{MessageKind(message), reason})
		if message == wire.MessageDisconnected {
			c.forget(s)
		}
	}
}

// startSession begins a session that is not known yet. c.mu is held.
func (c *Client) startSession(path, config string, at godbus.Sequence) {
	if c.sessions[godbus.ObjectPath(path)] != nil {
		return
	}
	s := &Session{c: c, path: path, config: c.Config(config), started: at, messages: makeQueue[Message](c.stop)}
	s.life, s.end = context.WithCancel(context.Background())
	if c.provider.options.PacketSignals {
		s.packets = make(chan []byte, packetBacklog)
	}
	c.sessions[godbus.ObjectPath(path)] = s
	c.provider.events.push(SessionStarted{s})
}

// endSession is for sessions whose end the daemon cannot tell. c.mu is held.
func (c *Client) endSession(s *Session, reason string) {
	s.messages.push(Message{MessageDisconnected, reason})
	c.forget(s)
}

func (c *Client) forget(s *Session) {
	s.messages.finish()
	s.end()
	if s.packets != nil {
		close(s.packets)
	}
	delete(c.sessions, godbus.ObjectPath(s.path))
}

// endProvider ends the provider, if there is one. c.mu is held.
func (c *Client) endProvider(err error) {
	if c.provider != nil {
		c.provider.end(err)
	}
}

// end closes Events and every session. c.mu is held.
func (p *Provider) end(err error) {
	if p.c.provider != p {
		return
	}
	p.c.provider = nil
	p.err = err
	if delete(p.c.doubted, p.app); err != nil {
		p.c.doubted[p.app] = true
	}
	for _, s := range p.c.sessions {
		p.c.endSession(s, endReason(err))
	}
	p.events.finish()
	close(p.done)
}

func endReason(err error) string {
	if err == nil {
		return wire.ReasonProviderGone
	}
	return wire.ReasonInternalPrefix + err.Error()
}

func (p *Provider) ownerChanged() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}
