package driver

import (
	"cmp"
	"context"
	"maps"

	"github.com/vpnprovider/vpnproviderd/driver/valid"
)

// NewConfig is what CreateConfig makes.
type NewConfig struct {
	App, Name   string
	Owner       uint32
	Data        Data
	AutoConnect bool
}

// CreateConfig makes a config. It is the provider's where the app's
// registered connection asks, the platform's otherwise; then the provider is
// told, now or when it comes.
func (m *Manager) CreateConfig(by Caller, n NewConfig) (ConfigID, error) {
	m.beginStoring()
	defer m.endStoring()
	if !by.sees(n.Owner) {
		return "", Errorf(KindNotAuthorized, "the caller may not create configs of uid %d", n.Owner)
	}
	app, err := m.ownApp(by, n.App)
	if err != nil {
		return "", err
	}
	if err := cmp.Or(checkName(n.Name), n.Data.check()); err != nil {
		return "", err
	}
	id := NewConfigID(n.Owner, app, n.Name)
	if m.configs[id] != nil {
		return "", Errorf(KindAlreadyExists, "app %q has a config %q already", app, n.Name)
	}
	if err := cmp.Or(m.room(n.Owner, id), m.roomForData(n.Owner, id, n.Data)); err != nil {
		return "", err
	}
	p := m.providers[providerKey{n.Owner, app}]
	c := &config{ConfigInfo: ConfigInfo{
		ID: id, App: app, Name: n.Name, Owner: n.Owner, Source: SourcePlatform, State: Idle,
		Data: n.Data, AutoConnect: n.AutoConnect,
		Lockdown: m.forgotten[id].Lockdown, // it is the same config again
	}}
	if p != nil && p.conn == by.Conn {
		c.Source, c.delivered = SourceProvider, true
	}
	if err := m.add(c, c.record(), p); err != nil {
		return "", err
	}
	return id, nil
}

// room says whether there may be one more config, of that id. It must be called
// with mu held.
func (m *Manager) room(owner uint32, id ConfigID) error {
	own, all := m.stored(owner, id)
	switch {
	case own >= m.opts.ConfigsPerUser:
		return Errorf(KindLimitExceeded, "uid %d has %d configs, removed ones in lockdown included, %d are allowed", owner, own, m.opts.ConfigsPerUser)
	case all >= m.opts.Configs:
		return Errorf(KindLimitExceeded, "there are %d configs, removed ones in lockdown included, %d are allowed", all, m.opts.Configs)
	}
	return nil
}

// stored counts the configs that programs made, those of owner and all, but for
// the one of that id. A removed one that is still in lockdown counts: making and
// removing such ones would fill the disk. It must be called with mu held.
func (m *Manager) stored(owner uint32, but ConfigID) (own, all int) {
	count := func(of uint32) {
		all++
		if of == owner {
			own++
		}
	}
	for _, c := range m.configs {
		if c.File == "" { // of the others the administrator knows
			count(c.Owner)
		}
	}
	for id, r := range m.forgotten {
		if r.Lockdown && id != but {
			count(r.Owner)
		}
	}
	return own, all
}

// How much data all configs may have, as valid.Size counts: of a user, and in
// all. All of it is in memory, and in one answer to who asks for all objects.
const (
	dataPerUser = 2 << 20
	dataInAll   = 12 << 20
)

// roomForData says whether the config may have the data. It must be called with
// mu held.
func (m *Manager) roomForData(owner uint32, id ConfigID, data Data) error {
	own, all := valid.Size(data), valid.Size(data)
	for _, c := range m.configs {
		if c.File != "" || c.ID == id {
			continue
		}
		all += c.size
		if c.Owner == owner {
			own += c.size
		}
	}
	switch {
	case own > dataPerUser:
		return Errorf(KindLimitExceeded, "the data of the configs of uid %d would be %d bytes, %d are allowed", owner, own, dataPerUser)
	case all > dataInAll:
		return Errorf(KindLimitExceeded, "the data of all configs would be %d bytes, %d are allowed", all, dataInAll)
	}
	return nil
}

// FindConfig gives the config of that name.
func (m *Manager) FindConfig(by Caller, owner uint32, app, name string) (ConfigID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	app, err := m.ownApp(by, app)
	if err != nil {
		return "", err
	}
	c, err := m.visible(by, NewConfigID(owner, app, name))
	if err != nil {
		return "", Errorf(KindNotFound, "app %q has no config %q", app, name)
	}
	return c.ID, nil
}

// ConfigChanges is what UpdateConfig changes; nil leaves it.
type ConfigChanges struct {
	Data        *Data
	AutoConnect *bool
	Lockdown    *bool
}

// UpdateConfig changes a config, all or nothing.
func (m *Manager) UpdateConfig(ctx context.Context, by Caller, id ConfigID, changes ConfigChanges) error {
	if changes.Lockdown != nil {
		return m.updateLockdown(ctx, by, id, changes)
	}
	return m.update(by, id, changes)
}

func (m *Manager) update(by Caller, id ConfigID, changes ConfigChanges) error {
	m.beginStoring()
	defer m.endStoring()
	c, err := m.own(by, id)
	if err != nil {
		return err
	}
	if changes.Data != nil {
		if err := cmp.Or(changes.Data.check(), m.roomForData(c.Owner, id, *changes.Data)); err != nil {
			return err
		}
	}
	return m.alter(c, changes.edit)
}

func (c ConfigChanges) edit(r *Record) {
	if c.Data != nil {
		r.Data = maps.Clone(*c.Data)
	}
	if c.AutoConnect != nil {
		r.AutoConnect = *c.AutoConnect
	}
	if c.Lockdown != nil {
		r.Lockdown = *c.Lockdown
	}
}

// AskToConfigure sends the config's provider, started if need be, a UI event
// for it. waiting is told when it takes its time.
func (m *Manager) AskToConfigure(ctx context.Context, by Caller, id ConfigID, event string, waiting func()) error {
	c, err := m.Config(by, id)
	if err != nil {
		return err
	}
	return m.ask(ctx, providerKey{c.Owner, c.App}, event, id, waiting)
}

// DestroyConfig removes a config: quietly for its provider, like RemoveConfig
// for others. It returns when its session is undone.
func (m *Manager) DestroyConfig(by Caller, id ConfigID) error {
	return m.remove(by, id, m.own, func(p *provider) bool { return p == nil || p.conn != by.Conn })
}

// RemoveConfig removes a config and tells its provider, now or when it comes.
// It returns when its session is undone.
func (m *Manager) RemoveConfig(by Caller, id ConfigID) error {
	return m.remove(by, id, m.own, func(*provider) bool { return true })
}

// remove is for those whom find gives the config.
func (m *Manager) remove(by Caller, id ConfigID, find func(Caller, ConfigID) (*config, error), tells func(*provider) bool) error {
	for {
		m.beginStoring()
		c, err := find(by, id)
		if err != nil {
			m.endStoring()
			return err
		}
		c.cancelWaiting()
		if c.Session == 0 {
			defer m.endStoring()
			p := m.providers[providerKey{c.Owner, c.App}]
			return m.forget(c, p, tells(p))
		}
		undone := m.active.endLocked(EventStop, ReasonRemoved)
		m.endStoring()
		<-undone
	}
}

// remembers says whether one more removal can be kept for a provider that is
// not there. It must be called with mu held.
func (m *Manager) remembers(owner uint32) bool {
	kept := 0
	for _, r := range m.forgotten {
		if r.Owner == owner && r.Delivered {
			kept++
		}
	}
	return kept < m.opts.ConfigsPerUser
}

// forget must be called with storing and mu held, for a config without a
// session.
func (m *Manager) forget(c *config, p *provider, tell bool) error {
	r := c.record()
	r.Removed, r.Data, r.File = true, nil, ""
	r.Delivered = tell && p == nil && c.delivered && m.remembers(c.Owner)
	if err := m.storeRemoved(r); err != nil {
		return Errorf(KindFailed, "cannot remove the config %q: %v", c.Name, err)
	}
	m.keepRemoved(r)
	if tell && p != nil {
		m.tell(ConfigRemoved{To: p.conn, ID: c.ID, Name: c.Name})
	}
	delete(m.configs, c.ID)
	m.tell(ConfigGone{Config: c.ConfigInfo})
	m.tellHealth()
	return nil
}
