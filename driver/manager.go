package driver

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver/valid"
	"github.com/vpnprovider/vpnproviderd/routing"
)

// Slots is how many tunnels can exist at a time: the live one and those that
// are being closed.
const Slots = 64

// Sources of a config.
const (
	SourceProvider = "provider"
	SourcePlatform = "platform"
)

// Options of a Manager. All but Log are required; zero durations and limits
// take their defaults.
type Options struct {
	Network  Network
	Host     Host
	Opener   Opener
	Store    Store
	Consents Consents
	Observer Observer
	Packets  PacketReceiver
	Log      *slog.Logger

	// Keep keeps the text for Resume in the next process, in place of the one
	// before, so that a kill at any instant leaves one of them. It is called
	// with the manager's lock held. nil: nothing is kept.
	Keep func(text []byte) error

	// NextSession gives the number of a new session.
	NextSession func() (SessionID, error)

	// ConnectTimeout is how long connecting and reconnecting may take, 5
	// minutes by default.
	ConnectTimeout time.Duration

	// ChannelTimeout is how long a session lives on after its client ended
	// the channel, 5 seconds by default.
	ChannelTimeout time.Duration

	// ConfigsPerUser and Configs limit how many configs there may be, 128 and
	// 1,024 by default.
	ConfigsPerUser, Configs int
}

// Manager is the domain: providers, configs and the session. Its methods may
// be called concurrently.
type Manager struct {
	opts Options
	log  *slog.Logger

	// connecting is held by the one Connect that ends the earlier session and
	// opens a TUN.
	connecting chan struct{}

	// locking is held by the one who begins or ends a lockdown.
	locking chan struct{}

	// storing is held by the one who changes a config. mu, which is taken after
	// it, is not held all the time then: see alter.
	storing chan struct{}

	// closing are the tunnels that are being closed in the background.
	closing sync.WaitGroup

	mu        sync.Mutex // protects everything below and in config, provider, session
	configs   map[ConfigID]*config
	forgotten map[ConfigID]Record      // removed, but kept: see Record.Removed
	problems  []Problem                // of the host
	health    []Problem                // what was told last
	consents  map[providerKey]struct{} // apps that their users agreed to
	providers map[providerKey]*provider
	uplink    Uplink
	agents    map[string]uint32             // connection to uid
	arrivals  map[providerKey]chan struct{} // closed when the provider has come
	active    *session                      // the one that is not undone yet
	slots     [Slots]bool
	down      bool // Shutdown or Leave was called
}

// config is a ConfigInfo that lives.
type config struct {
	ConfigInfo
	delivered bool
	waiting   map[*attempt]struct{} // Connects that have not got a session yet

	writing bool // alter writes a record of it at the moment, without the lock
	unsaved bool // and that one has not what the config has become meanwhile
}

func (c *config) record() Record {
	return Record{
		App: c.App, Name: c.Name, Owner: c.Owner, Source: c.Source, File: c.File, Data: c.Data,
		AutoConnect: c.AutoConnect, Lockdown: c.Lockdown, LastConnected: c.LastConnected, Delivered: c.delivered,
	}
}

// NewManager loads what is stored.
func NewManager(opts Options) (*Manager, error) {
	m := &Manager{
		opts:       withDefaults(opts),
		connecting: make(chan struct{}, 1),
		locking:    make(chan struct{}, 1),
		storing:    make(chan struct{}, 1),
		configs:    make(map[ConfigID]*config),
		forgotten:  make(map[ConfigID]Record),
		consents:   make(map[providerKey]struct{}),
		providers:  make(map[providerKey]*provider),
		agents:     make(map[string]uint32),
		arrivals:   make(map[providerKey]chan struct{}),
	}
	m.log = m.opts.Log
	if err := m.loadConsents(); err != nil {
		return nil, fmt.Errorf("cannot load the consents: %w", err)
	}
	records, err := m.opts.Store.Load()
	if err != nil {
		return nil, fmt.Errorf("cannot load the configs: %w", err)
	}
	for _, r := range records {
		if r.Removed {
			m.forgotten[r.ID()] = r
			continue
		}
		m.configs[r.ID()] = &config{
			ConfigInfo: ConfigInfo{
				ID: r.ID(), App: r.App, Name: r.Name, Owner: r.Owner, Source: r.Source, File: r.File, State: Idle,
				Data: r.Data, AutoConnect: r.AutoConnect, Lockdown: r.Lockdown, LastConnected: r.LastConnected,
				size: valid.Size(r.Data),
			},
			delivered: r.Delivered,
		}
	}
	return m, nil
}

func withDefaults(o Options) Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = 5 * time.Minute
	}
	if o.ChannelTimeout == 0 {
		o.ChannelTimeout = 5 * time.Second
	}
	if o.ConfigsPerUser == 0 {
		o.ConfigsPerUser = 128
	}
	if o.Configs == 0 {
		o.Configs = 1024
	}
	return o
}

// Shutdown ends the session and returns when everything is undone. No session
// begins after it.
func (m *Manager) Shutdown() {
	if s := m.stop(); s != nil {
		<-s.end(EventStop, ReasonShutdown)
	}
	m.closing.Wait()
}

// Leave leaves the session to the process that resumes. It returns when what was
// being undone is. No session begins after it.
func (m *Manager) Leave() {
	s := m.stop()
	m.mu.Lock()
	ending := s != nil && s.state == Disconnecting
	m.mu.Unlock()
	if ending {
		<-s.undone
	}
	m.closing.Wait()
}

// stop lets no session begin any more, and gives the one that there is.
func (m *Manager) stop() *session {
	m.mu.Lock()
	first := !m.down
	m.down = true
	for _, c := range m.configs {
		c.cancelWaiting()
	}
	for key := range m.arrivals {
		m.wake(key)
	}
	m.mu.Unlock()
	if first {
		m.connecting <- struct{}{} // and nobody else gets it any more
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.active
}

// Idle says that nobody needs the manager: neither provider nor agent is
// registered, no session exists, and no lockdown is in force, which another
// program could undo.
func (m *Manager) Idle() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.providers) == 0 && len(m.agents) == 0 && m.active == nil && !m.opts.Network.Locked()
}

// tell must be called with mu held.
func (m *Manager) tell(n Notice) { m.opts.Observer.Observe(n) }

// change edits a config and tells of it. It must be called with mu held.
func (m *Manager) change(c *config, edit func(*ConfigInfo)) {
	before := c.ConfigInfo
	edit(&c.ConfigInfo)
	m.tell(ConfigChanged{Before: before, After: c.ConfigInfo})
}

// visible finds a config that the caller may see. It must be called with mu
// held.
func (m *Manager) visible(by Caller, id ConfigID) (*config, error) {
	c := m.configs[id]
	if c == nil || !by.sees(c.Owner) {
		return nil, notFound("config", string(id))
	}
	return c, nil
}

// takeSlot must be called with mu held.
func (m *Manager) takeSlot() (int, error) {
	for k, taken := range m.slots {
		if !taken {
			m.slots[k] = true
			return k, nil
		}
	}
	return 0, Errorf(KindLimitExceeded, "%d tunnels are still being closed", Slots)
}

func (m *Manager) freeSlot(k int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slots[k] = false
}

// closeTunnel closes in the background: the kernel takes about 20 ms for it,
// which neither a reply nor the next session should wait for.
func (m *Manager) closeTunnel(t Tunnel, link routing.Link) {
	m.closing.Go(func() {
		if err := t.Close(); err != nil {
			m.log.Error("cannot close the tunnel", "interface", link.Name, "error", err)
		}
		m.freeSlot(link.Slot)
	})
}

func microseconds(t time.Time) uint64 { return uint64(t.UnixMicro()) }

// acquire takes a token of a one-place semaphore.
func acquire(ctx context.Context, sem chan struct{}) error {
	select {
	case sem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
