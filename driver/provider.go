package driver

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
)

type providerKey struct {
	uid uint32
	app string
}

// provider is a registered one.
type provider struct {
	providerKey
	ProviderOptions
	conn string
}

// ProviderOptions is what a provider says of itself.
type ProviderOptions struct {
	DisplayName string
	Icon        string

	// PacketSignals: it wants packets by signal while it has no channel. It
	// counts for the sessions that begin after it was said.
	PacketSignals bool
}

// ProviderInfo is a provider as others of its user see it.
type ProviderInfo struct {
	ProviderOptions
	App        string
	Registered bool
}

// Registration is what RegisterProvider found.
type Registration struct {
	Configs []ConfigID // of the app

	// New: the caller was not the app's provider before.
	New bool
}

// providersPerUser limits how many apps of a user can be registered.
const providersPerUser = 128

// RegisterProvider makes the caller's connection the provider of app. What
// the platform did with the app's configs meanwhile is told before it returns.
// With replace it takes over from another connection of the uid, whose
// sessions end first.
func (m *Manager) RegisterProvider(by Caller, app string, opts ProviderOptions, replace bool) (Registration, error) {
	if err := cmp.Or(checkText("displayName", opts.DisplayName), checkText("icon", opts.Icon)); err != nil {
		return Registration{}, err
	}
	m.mu.Lock()
	app, err := m.ownApp(by, app)
	if err != nil {
		m.mu.Unlock()
		return Registration{}, err
	}
	key := providerKey{by.UID, app}
	for {
		p := m.providers[key]
		if p == nil || p.conn == by.Conn {
			break
		}
		if !replace {
			m.mu.Unlock()
			return Registration{}, Errorf(KindAlreadyExists, "app %q has a provider already; the option replace takes over from it", app)
		}
		undone := m.dropProvider(p)
		m.mu.Unlock()
		<-undone
		m.mu.Lock()
	}
	defer m.mu.Unlock()
	fresh := m.providers[key] == nil
	if fresh && m.registered(by.UID) >= providersPerUser {
		return Registration{}, Errorf(KindLimitExceeded, "uid %d has %d providers, no more are allowed", by.UID, providersPerUser)
	}
	m.providers[key] = &provider{providerKey: key, ProviderOptions: opts, conn: by.Conn}
	m.keep()
	m.deliver(key, by.Conn)
	m.wake(key)
	return Registration{Configs: m.configsOf(key), New: fresh}, nil
}

// IsRegistered says whether the caller's connection is the provider of the app
// already.
func (m *Manager) IsRegistered(by Caller, app string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	app, err := m.ownApp(by, app)
	p := m.providers[providerKey{by.UID, app}]
	return err == nil && p != nil && p.conn == by.Conn
}

// registered must be called with mu held.
func (m *Manager) registered(uid uint32) (n int) {
	for key := range m.providers {
		if key.uid == uid {
			n++
		}
	}
	return n
}

// ownApp says which app is meant: the empty one is the only one that the
// caller has registered. It must be called with mu held.
func (m *Manager) ownApp(by Caller, app string) (string, error) {
	if app != "" {
		return app, checkApp(app)
	}
	var own []string
	for key, p := range m.providers {
		if p.conn == by.Conn {
			own = append(own, key.app)
		}
	}
	if len(own) != 1 {
		return "", Errorf(KindInvalidParameter, "no app is named, and the caller is the provider of %d", len(own))
	}
	return own[0], nil
}

// deliver tells a provider that has just come of the configs that were
// created and removed without it. It must be called with mu held.
func (m *Manager) deliver(key providerKey, conn string) {
	for _, r := range m.forgotten {
		if r.Owner != key.uid || r.App != key.app || !r.Delivered {
			continue
		}
		m.tell(ConfigRemoved{To: conn, ID: r.ID(), Name: r.Name})
		m.erase(r)
	}
	for _, id := range m.configsOf(key) {
		m.created(m.configs[id], conn)
	}
}

// created tells a provider of a config, once. It must be called with mu held.
func (m *Manager) created(c *config, conn string) {
	if c.delivered {
		return
	}
	c.delivered = true
	m.tell(ConfigCreated{To: conn, Config: c.ConfigInfo})
	m.save(c)
}

// erase forgets a removed config whose provider was told, unless its lockdown
// is not ended. It must be called with mu held.
func (m *Manager) erase(r Record) {
	r.Delivered = false
	if err := m.storeRemoved(r); err != nil {
		m.log.Error("cannot change a stored config", "config", r.ID(), "error", err)
	}
	m.keepRemoved(r)
}

// storeRemoved stores what must be kept of a removed config, keepRemoved does
// the same in memory. They must be called with mu held.
func (m *Manager) storeRemoved(r Record) error {
	if r.Delivered || r.Lockdown {
		return m.opts.Store.Save(r)
	}
	return m.opts.Store.Delete(r.Owner, r.ID())
}

func (m *Manager) keepRemoved(r Record) {
	if r.Delivered || r.Lockdown {
		m.forgotten[r.ID()] = r
	} else {
		delete(m.forgotten, r.ID())
	}
}

// UnregisterProvider ends the app's sessions; its configs stay.
func (m *Manager) UnregisterProvider(by Caller, app string) error {
	m.mu.Lock()
	app, err := m.ownApp(by, app)
	if err != nil {
		m.mu.Unlock()
		return err
	}
	p := m.providers[providerKey{by.UID, app}]
	if p == nil {
		m.mu.Unlock()
		return Errorf(KindNotFound, "app %q has no provider", app)
	}
	if p.conn != by.Conn {
		m.mu.Unlock()
		return Errorf(KindNotOwner, "the caller is not the provider of app %q", app)
	}
	undone := m.dropProvider(p)
	m.mu.Unlock()
	<-undone
	return nil
}

// dropProvider unregisters p. The channel it returns is closed when its
// session is undone. It must be called with mu held.
func (m *Manager) dropProvider(p *provider) <-chan struct{} {
	delete(m.providers, p.providerKey)
	m.keep()
	if s := m.active; s != nil && s.provider == p.providerKey && s.conn == p.conn {
		return s.endLocked(EventProviderGone, ReasonProviderGone)
	}
	return closed()
}

// ConnectionGone forgets a connection that has left the bus: its sessions
// end, and what it waits for is cancelled.
func (m *Manager) ConnectionGone(conn string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, agent := m.agents[conn]; agent {
		delete(m.agents, conn)
		m.keep()
	}
	if s := m.active; s != nil && s.conn == conn {
		s.gone = true
	}
	for _, p := range slices.Collect(maps.Values(m.providers)) {
		if p.conn == conn {
			m.dropProvider(p)
		}
	}
}

// ListProviders gives the apps of the caller's uid that are registered or
// have configs, by name.
func (m *Manager) ListProviders(by Caller) []ProviderInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	apps := make(map[string]ProviderInfo)
	for _, c := range m.configs {
		if c.Owner == by.UID {
			apps[c.App] = ProviderInfo{App: c.App}
		}
	}
	for key, p := range m.providers {
		if key.uid == by.UID {
			apps[key.app] = ProviderInfo{ProviderOptions: p.ProviderOptions, App: key.app, Registered: true}
		}
	}
	return slices.SortedFunc(maps.Values(apps), func(a, b ProviderInfo) int { return cmp.Compare(a.App, b.App) })
}

// ForgetProvider ends the app's sessions, removes its configs but those of
// the administrator, and forgets that owner agreed to it.
func (m *Manager) ForgetProvider(by Caller, owner uint32, app string) error {
	ids, err := m.beginForgetting(by, owner, app)
	if err != nil {
		return err
	}
	for _, id := range ids {
		err := m.DestroyConfig(by, id)
		if KindOf(err) == KindNotAuthorized {
			err = m.Disconnect(context.Background(), by, id, nil)
		}
		if err != nil && KindOf(err) != KindNotFound {
			return err
		}
	}
	return nil
}

// beginForgetting revokes the consent and gives the configs that are to go.
func (m *Manager) beginForgetting(by Caller, owner uint32, app string) ([]ConfigID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key, err := m.appOf(by, owner, app)
	if err != nil {
		return nil, err
	}
	consented, err := m.revoke(key)
	if err != nil {
		return nil, err
	}
	ids := m.configsOf(key)
	if m.providers[key] == nil && len(ids) == 0 && !consented {
		return nil, notFound("app", key.app)
	}
	for _, id := range ids {
		m.configs[id].cancelWaiting() // none of them is to bring the consent back
	}
	return ids, nil
}

// appOf says which app of owner is meant; the caller's only one need not be
// named. It must be called with mu held.
func (m *Manager) appOf(by Caller, owner uint32, app string) (providerKey, error) {
	if !by.sees(owner) {
		return providerKey{}, notFound("app", app)
	}
	if app == "" && owner != by.UID {
		return providerKey{}, Errorf(KindInvalidParameter, "no app of uid %d is named", owner)
	}
	app, err := m.ownApp(by, app)
	return providerKey{owner, app}, err
}

// AskForConfig sends the provider of an app of owner, started if need be, a UI
// event without a config. waiting is told when it takes its time.
func (m *Manager) AskForConfig(ctx context.Context, by Caller, owner uint32, app, event string, waiting func()) error {
	m.mu.Lock()
	key, err := m.appOf(by, owner, app)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return m.ask(ctx, key, event, "", waiting)
}

func (m *Manager) ask(ctx context.Context, key providerKey, event string, id ConfigID, waiting func()) error {
	p, err := m.await(ctx, key, waiting)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tell(UIEvent{To: p.conn, Event: event, Config: id})
	return nil
}

// running must be called with mu held.
func (m *Manager) running(key providerKey) (*provider, error) {
	p := m.providers[key]
	if p == nil {
		return nil, Errorf(KindProviderNotRunning, "the provider of app %q is not running", key.app)
	}
	return p, nil
}

// configsOf must be called with mu held.
func (m *Manager) configsOf(key providerKey) []ConfigID {
	var ids []ConfigID
	for id, c := range m.configs {
		if c.Owner == key.uid && c.App == key.app {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b ConfigID) int { return strings.Compare(m.configs[a].Name, m.configs[b].Name) })
	return ids
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
