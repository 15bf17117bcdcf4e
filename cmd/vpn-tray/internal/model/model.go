// Package model is what the tray knows and what follows from it: the menu, the
// icon, and what the user is told. It neither calls nor draws, and has no clock.
package model

import (
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

const (
	// reconnectPatience is how long a VPN may reconnect before the user is told:
	// most do so within a moment of a change of the network.
	reconnectPatience = 5 * time.Second

	// restartPatience is how long the daemon may be away before that is shown:
	// an upgrade takes less, and keeps the connections.
	restartPatience = 5 * time.Second
)

// Model is a tray's state. It belongs to one goroutine. Whatever changes it
// says when, and the times must not go back.
type Model struct {
	service   service
	since     time.Time // of away
	cut       bool      // a VPN was active when the daemon went away
	configs   map[string]*config
	latest    string // path of the config whose state changed last
	providers []client.ProviderInfo
	health    []client.Health
	notices   []Notice
}

// service is what is known of the daemon.
type service int

const (
	asking service = iota // nothing so far
	running
	away   // gone for a moment, maybe
	absent // gone
)

// config is what is known of one, and what the user was told of it.
type config struct {
	client.ConfigProperties
	stale   bool      // not told again since the connection to the bus was lost
	waiting bool      // asked to connect; there is no answer yet
	since   time.Time // of reconnecting
	slow    bool      // that it reconnects for long was told
	open    bool      // what was told of it still stands
}

// New is a model that knows nothing yet.
func New() *Model { return &Model{configs: make(map[string]*config)} }

// Joined says that Watch tells everything from the beginning now.
func (m *Model) Joined() {
	for _, c := range m.configs {
		c.stale = true
	}
}

// Apply takes what Watch tells.
func (m *Model) Apply(change client.Change, now time.Time) {
	switch change.Kind {
	case client.Added, client.Changed:
		if change.Config != nil {
			m.update(*change.Config, now)
		}
	case client.Removed:
		if change.Config != nil {
			m.remove(change.Config.Path)
		}
	case client.Synced:
		m.synced()
	case client.Stopped:
		m.leave(now)
	}
}

// Lost says that the daemon, or the bus, cannot be reached.
func (m *Model) Lost(now time.Time) {
	if m.service == asking {
		m.service = absent
		return
	}
	m.leave(now)
}

// Running says whether the daemon is there.
func (m *Model) Running() bool { return m.service == running }

func (m *Model) leave(now time.Time) {
	if m.service == running {
		m.service, m.since = away, now
	}
}

func (m *Model) synced() {
	for path, c := range m.configs {
		if c.stale {
			m.remove(path)
		}
	}
	if m.service == absent {
		m.withdraw(serviceKey)
	}
	m.service, m.cut = running, false
}

// update takes what a config is now. What there is when the tray starts is no
// news.
func (m *Model) update(p client.ConfigProperties, now time.Time) {
	c, known := m.configs[p.Path]
	before := client.StateIdle
	if known {
		before = c.State
	} else {
		c = &config{}
		m.configs[p.Path] = c
	}
	c.ConfigProperties, c.stale = p, false
	if p.State == before {
		return
	}
	if p.State.Active() {
		c.waiting = false
	}
	if m.service == asking {
		if p.State == client.StateFailed {
			m.latest = p.Path
		}
	} else {
		m.latest = p.Path
		m.news(c)
	}
	c.since = time.Time{}
	if p.State == client.StateReconnecting {
		c.since = now
	}
}

func (m *Model) remove(path string) {
	if c := m.configs[path]; c != nil && c.open {
		m.withdraw(path)
	}
	delete(m.configs, path)
}

// SetProviders takes the apps that there are.
func (m *Model) SetProviders(all []client.ProviderInfo) { m.providers = all }

// SetHealth takes what is wrong with the daemon or its host.
func (m *Model) SetHealth(all []client.Health) { m.health = all }

// Asked says that the user wants something, and that it was asked for.
func (m *Model) Asked(a Action) {
	c := m.configs[a.Target]
	if c == nil {
		return
	}
	switch a.Verb {
	case Connect:
		c.waiting = !c.State.Active()
		m.latest = a.Target
	case Disconnect:
		c.waiting = false
	default:
	}
}

// Answered says how it went. What the user has called off meanwhile is no
// news, and where all is well, the state tells.
func (m *Model) Answered(a Action, err error) {
	if err == nil {
		return
	}
	if c := m.configs[a.Target]; c != nil && a.Verb == Connect {
		if !c.waiting {
			return
		}
		c.waiting = false
	}
	m.refused(a, err)
}

// Next is when Due is to be called although nothing happened; zero: never.
func (m *Model) Next() time.Time {
	var next time.Time
	at := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if m.service == away {
		at(m.since.Add(restartPatience))
	}
	for _, c := range m.configs {
		if c.State == client.StateReconnecting && !c.slow && !c.since.IsZero() {
			at(c.since.Add(reconnectPatience))
		}
	}
	return next
}

// Due is what the user is to be told now, once.
func (m *Model) Due(now time.Time) []Notice {
	if m.service == away && !now.Before(m.since.Add(restartPatience)) {
		m.vanish()
	}
	for _, c := range m.configs {
		if c.State == client.StateReconnecting && !c.slow && !c.since.IsZero() && !now.Before(c.since.Add(reconnectPatience)) {
			m.tarry(c)
		}
	}
	due := m.notices
	m.notices = nil
	return due
}
