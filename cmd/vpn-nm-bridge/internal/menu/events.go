package menu

import (
	"context"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/nm"
)

func (m *Menu) takeEvent(ctx context.Context, event nm.Event) {
	switch event.Kind {
	case nm.Started:
		m.started(ctx)
	case nm.Stopped:
		m.running = false
		for _, e := range m.entries {
			e.profile, e.link = "", link{}
		}
	case nm.ActiveList:
		m.list(ctx, event.Paths)
	case nm.ActiveChanged:
		if e := m.find(event.Path); e != nil {
			m.changed(ctx, e, event.State, event.Reason)
		}
	case nm.VPNChanged:
		if e := m.find(event.Path); e != nil {
			e.link.vpn = event.VPN
			m.tellLast(e)
			m.settle(ctx, e)
		}
	case nm.ProfileAdded:
		// While it starts, NetworkManager reads what it has kept of ours.
		for _, e := range m.entries {
			if e.profile == "" {
				m.adopt(ctx)
				return
			}
		}
	case nm.ProfileDeleted:
		for _, e := range m.entries {
			if e.profile == event.Path {
				e.profile = ""
				m.dress(ctx, e) // as long as there is the config, there is the profile
			}
		}
	case nm.Retry:
		m.retry(ctx)
	}
}

// started is NetworkManager's begin, or ours.
func (m *Menu) started(ctx context.Context) {
	m.running = true
	for _, e := range m.entries {
		e.profile, e.link, e.blocked, e.shows = "", link{}, false, 0
	}
	m.adopt(ctx)
}

// adopt takes over what an earlier run of ours, or NetworkManager's, has left,
// and brings it up to date.
func (m *Menu) adopt(ctx context.Context) {
	if !m.running || !m.synced {
		return
	}
	found, err := m.profiles.Profiles(ctx)
	if err != nil {
		m.log.Warn("NetworkManager cannot be read", "error", err)
		return
	}
	byUUID := make(map[string]*entry, len(m.entries))
	for _, e := range m.entries {
		byUUID[e.uuid] = e
	}
	for path, s := range found {
		if e, ok := byUUID[s.String("connection", "uuid")]; ok {
			e.profile, e.shown = path, faceOf(s)
		} else if m.owns(s) {
			if err := m.profiles.DeleteProfile(ctx, path); err != nil {
				m.log.Warn("the profile of a config that is gone stays", "error", err)
			}
		}
	}
	m.dressAll(ctx)
	active, err := m.activations.Activations(ctx)
	if err != nil {
		m.log.Warn("NetworkManager cannot be read", "error", err)
	}
	m.meet(ctx, active)
	for _, e := range m.entries {
		m.settle(ctx, e)
	}
}

// list looks for activations that are new. One that is missing says nothing:
// the list may be older than the activation, and its end is told by itself.
func (m *Menu) list(ctx context.Context, paths []godbus.ObjectPath) {
	var news []godbus.ObjectPath
	for _, path := range paths {
		if m.find(path) == nil {
			news = append(news, path)
		}
	}
	m.meet(ctx, m.activations.Read(ctx, news))
}

// meet looks at activations for those of our profiles.
func (m *Menu) meet(ctx context.Context, active []nm.Active) {
	for _, a := range active {
		for _, e := range m.entries {
			if e.uuid == a.UUID && e.profile != "" && e.link.path != a.Path && a.State != nm.Deactivated {
				m.appeared(ctx, e, a)
			}
		}
	}
}

// retry does again what was refused.
func (m *Menu) retry(ctx context.Context) {
	for _, e := range m.entries {
		e.blocked, e.shows, e.refused = false, 0, ""
	}
	m.adopt(ctx)
}
