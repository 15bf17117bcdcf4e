package menu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/nm"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// cleanTime is how long taking the profiles away may take in the end.
const cleanTime = 5 * time.Second

// Menu shows one user's configs. It is used once.
type Menu struct {
	user        User
	profiles    Profiles
	activations Activations
	configs     Configs
	log         *slog.Logger

	entries map[string]*entry // by the config's path
	running bool              // NetworkManager is there
	synced  bool              // all configs are known

	work   sync.WaitGroup
	posted chan func() // what calls that have ended have to say
}

// Options are all needed.
type Options struct {
	User        User
	Profiles    Profiles
	Activations Activations
	Configs     Configs
	Log         *slog.Logger
}

// New makes a menu; Run fills it.
func New(o Options) *Menu {
	return &Menu{
		user: o.User, profiles: o.Profiles, activations: o.Activations, configs: o.Configs, log: o.Log,
		entries: make(map[string]*entry), posted: make(chan func()),
	}
}

// Run follows both sides until ctx is done, and then takes the profiles away;
// sessions stay. It fails when either side can no longer be followed: when a
// channel is closed.
func (m *Menu) Run(ctx context.Context, running bool, changes <-chan client.Change, events <-chan nm.Event) error {
	ctx, cancel := context.WithCancel(ctx)
	defer m.work.Wait()
	defer cancel()
	if running {
		m.started(ctx)
	}
	var err error
	for err == nil {
		select {
		case change, ok := <-changes:
			if !ok {
				err = errors.New("vpnproviderd can no longer be watched")
				break
			}
			m.takeChange(ctx, change)
		case event, ok := <-events:
			if !ok {
				err = errors.New("NetworkManager can no longer be watched")
				break
			}
			m.takeEvent(ctx, event)
		case f := <-m.posted:
			f()
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if ctx.Err() != nil {
		err = nil
	}
	last, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer stop()
	return errors.Join(err, m.Clear(last))
}

// Clear takes away every profile of the user's, also those of an earlier run.
func (m *Menu) Clear(ctx context.Context) error {
	// Where NetworkManager is not there, neither is a profile.
	found, _ := m.profiles.Profiles(ctx)
	var err error
	for path, s := range found {
		if m.owns(s) {
			err = errors.Join(err, m.profiles.DeleteProfile(ctx, path))
		}
	}
	return err
}

// owns says whether a profile was made for this user.
func (m *Menu) owns(s nm.Settings) bool {
	list, _ := s["connection"]["permissions"].Value().([]string)
	return len(list) == 1 && list[0] == "user:"+m.user.Name+":"
}

// post has f run with the state, unless everything ends.
func (m *Menu) post(ctx context.Context, f func()) {
	select {
	case m.posted <- f:
	case <-ctx.Done():
	}
}

func (m *Menu) takeChange(ctx context.Context, change client.Change) {
	switch change.Kind {
	case client.Added, client.Changed:
		if change.Config == nil || change.Config.Owner != m.user.UID { // root sees others'
			return
		}
		e, known := m.entries[change.Config.Path]
		if !known {
			uuid := uuidOf(change.Config.Path)
			if uuid == "" {
				return
			}
			e = &entry{uuid: uuid}
			m.entries[change.Config.Path] = e
		}
		m.update(ctx, e, *change.Config)
	case client.Removed:
		if change.Config != nil {
			m.remove(ctx, change.Config.Path)
		}
	case client.Synced:
		m.synced = true
		m.adopt(ctx)
	case client.Stopped: // what was told stays
	}
}

func (m *Menu) update(ctx context.Context, e *entry, config client.ConfigProperties) {
	if config.Session != e.config.Session {
		e.shows, e.blocked = 0, false
		if config.Session != "" {
			e.failed = ""
		}
	}
	e.config = config
	if e.ending != "" && (config.Session != e.ending || !config.State.Active()) {
		e.ending = ""
	}
	if m.synced {
		m.dressAll(ctx)
	}
	m.settle(ctx, e)
}

func (m *Menu) remove(ctx context.Context, path string) {
	e, ok := m.entries[path]
	if !ok {
		return
	}
	delete(m.entries, path)
	if e.profile != "" {
		if err := m.profiles.DeleteProfile(ctx, e.profile); err != nil {
			m.log.Warn("the profile of a config that is gone stays", "error", err)
		}
	}
	m.dressAll(ctx) // another may no longer share its name
}

// dressAll has every profile made, and look as it should.
func (m *Menu) dressAll(ctx context.Context) {
	for _, e := range m.entries {
		m.dress(ctx, e)
	}
}

// dress makes the profile of an entry, or updates it.
func (m *Menu) dress(ctx context.Context, e *entry) {
	if !m.running || !m.synced {
		return
	}
	want := m.user.face(e.config, m.nameOf(e), e.reason())
	if e.profile != "" && want.equal(e.shown) {
		return
	}
	var err error
	if e.profile == "" {
		e.profile, err = m.profiles.AddProfile(ctx, m.user.settings(e.uuid, want))
	} else {
		err = m.profiles.UpdateProfile(ctx, e.profile, m.user.settings(e.uuid, want))
	}
	if err == nil {
		e.shown, e.refused = want, ""
	} else if e.refused != err.Error() {
		e.refused = err.Error()
		m.log.Info("the config is not in NetworkManager's menu", "name", e.config.Name, "error", err)
	}
}

// reason is why the config last failed, in words.
func (e *entry) reason() string {
	switch {
	case e.failed != "":
		return e.failed
	case wordFor(e.config.FailureReason) != "":
		return e.config.FailureReason
	default:
		return ""
	}
}

// nameOf is the config's own name, with the app where another has the same.
func (m *Menu) nameOf(e *entry) string {
	for _, other := range m.entries {
		if other != e && other.config.Name == e.config.Name {
			return fmt.Sprintf("%s (%s)", e.config.Name, e.config.App)
		}
	}
	return e.config.Name
}

// refusal is the reason for the plugin where Connect was refused.
func refusal(err error) string {
	if errors.Is(err, client.ErrProviderNotRunning) || errors.Is(err, client.ErrNotRunning) {
		return wire.ReasonProviderGone
	}
	return err.Error()
}

// find is the entry whose activation this is.
func (m *Menu) find(path godbus.ObjectPath) *entry {
	for _, e := range m.entries {
		if e.link.path == path {
			return e
		}
	}
	return nil
}
