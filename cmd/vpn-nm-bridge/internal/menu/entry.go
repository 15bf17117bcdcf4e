package menu

import (
	"context"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/nm"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// maxShows is how often an activation that does not last is made again before
// something has changed.
const maxShows = 3

// entry is a config and what NetworkManager has of it.
type entry struct {
	config  client.ConfigProperties
	uuid    string
	profile godbus.ObjectPath // "" while there is none
	shown   face              // of the profile
	refused string            // why there is none, or not as it should be: told once

	link link

	asking bool   // a call of Connect is under way: the user's wish
	ending string // the session that is being ended: the user's wish
	failed string // why Connect was refused; vpnproviderd keeps other reasons

	shows   int  // activations of ours that ended by themselves
	blocked bool // and it was refused: wait until something changes
}

// link is an activation of the profile.
type link struct {
	path   godbus.ObjectPath // "" while there is none
	vpn    nm.VPNState
	seen   bool // there was a session while it was there: with that it ends
	told   bool // that it is connected
	asked  bool // by the user, who waits for it
	up     bool // it was activated
	ending bool // we end it, or the user does: what comes of it is no wish

	// last is what is left to say to a plugin that does not listen yet.
	last   nm.Word
	reason string
}

// settle takes the next step towards NetworkManager showing what is.
func (m *Menu) settle(ctx context.Context, e *entry) {
	active := e.config.State.Active()
	switch {
	case e.profile == "" || e.config.State == client.StateDisconnecting:
	case active && e.config.Session == e.ending:
	case active && e.link.path == "":
		m.show(ctx, e)
	case e.link.path == "" || e.link.ending:
	case active:
		e.link.seen = true
		if e.config.State == client.StateConnected && e.link.vpn == nm.VPNConnecting && !e.link.told {
			e.link.told = true
			m.tell(e, nm.Connected, "")
		}
	case e.link.seen && !e.asking:
		m.hide(ctx, e, e.config.FailureReason)
	}
}

// show activates the profile of a config that was connected elsewhere.
func (m *Menu) show(ctx context.Context, e *entry) {
	if e.blocked || e.shows >= maxShows {
		return
	}
	path, err := m.activations.Activate(ctx, e.profile)
	if err != nil {
		// There is no base connection, or no right to.
		e.blocked = true
		m.log.Info("NetworkManager cannot show the connection", "name", e.config.Name, "error", err)
		return
	}
	e.shows++
	e.link = link{path: path, seen: true}
}

// hide ends the activation of a config whose session has ended, or did not
// begin. Of a failure the plugin is told, so that the user is.
func (m *Menu) hide(ctx context.Context, e *entry, reason string) {
	e.link.ending = true
	if word := wordFor(reason); word != "" {
		e.link.last, e.link.reason = word, reason
		m.tellLast(e)
		return
	}
	if err := m.activations.Deactivate(ctx, e.link.path); err != nil {
		m.log.Warn("NetworkManager still shows a connection that has ended", "name", e.config.Name, "error", err)
	}
}

func (m *Menu) tellLast(e *entry) {
	if e.link.last != "" && e.link.vpn >= nm.VPNConnecting {
		m.tell(e, e.link.last, e.link.reason)
		e.link.last = ""
	}
}

// wordFor is what the plugin is told of a reason; "" is none: nothing failed.
func wordFor(reason string) nm.Word {
	switch reason {
	case wire.ReasonUser, wire.ReasonReplaced, wire.ReasonRemoved, wire.ReasonShutdown:
		return ""
	case wire.ReasonProviderGone, wire.ReasonChannelClosed:
		return nm.Lost
	default:
		return nm.Failed
	}
}

func (m *Menu) tell(e *entry, word nm.Word, reason string) {
	if err := m.activations.Tell(e.link.path, word, reason); err != nil {
		m.log.Warn("the plugin cannot be told", "name", e.config.Name, "error", err)
	}
}

// appeared is an activation that is not ours, or of an earlier run of ours.
func (m *Menu) appeared(ctx context.Context, e *entry, a nm.Active) {
	up := a.State == nm.Activated
	e.link = link{path: a.Path, vpn: a.VPN, told: up, up: up}
	switch {
	case a.State == nm.Deactivating:
		e.link.ending = true
	case e.config.State.Active() && e.config.Session != e.ending:
	case up:
		e.link.seen = true // and the session has ended since
	default:
		e.link.asked = true
		m.connect(ctx, e)
	}
	m.settle(ctx, e)
}

// changed is the activation in another state.
func (m *Menu) changed(ctx context.Context, e *entry, state nm.ActiveState, reason nm.Reason) {
	switch state {
	case nm.Activated:
		e.shows, e.link.up = 0, true
		return
	case nm.Deactivating, nm.Deactivated:
	default:
		return
	}
	// An attempt of the user's that has failed there has failed.
	wished := !e.link.ending && (isWish(reason) || e.link.asked && !e.link.up)
	e.link.ending = true
	if state == nm.Deactivated {
		e.link = link{}
	}
	if wished && (e.asking || e.config.State.Active()) {
		m.disconnect(ctx, e)
	}
	m.settle(ctx, e)
}

// isWish says whether the user had an activation ended: by hand, or by waiting
// for longer than the profile says.
func isWish(reason nm.Reason) bool {
	switch reason {
	case nm.UserDisconnected, nm.ProfileRemoved, nm.ConnectTimeout, nm.ServiceStartTimeout:
		return true
	default:
		return false
	}
}

// connect asks vpnproviderd for a session, as the user wished.
func (m *Menu) connect(ctx context.Context, e *entry) {
	if e.asking {
		return
	}
	e.asking, e.failed = true, ""
	config := e.config.Path
	m.work.Go(func() {
		err := m.configs.Connect(ctx, config)
		m.post(ctx, func() { m.connected(ctx, e, err) })
	})
}

// connected is how that went.
func (m *Menu) connected(ctx context.Context, e *entry, err error) {
	e.asking = false
	if err != nil {
		m.log.Info("cannot connect", "name", e.config.Name, "error", err)
		e.failed = err.Error()
		m.dress(ctx, e)
		if e.link.path != "" && !e.link.ending && !e.config.State.Active() {
			m.hide(ctx, e, refusal(err))
		}
	}
	m.settle(ctx, e)
}

// disconnect ends the session, as the user wished.
func (m *Menu) disconnect(ctx context.Context, e *entry) {
	e.ending = e.config.Session
	config := e.config.Path
	m.work.Go(func() {
		err := m.configs.Disconnect(ctx, config)
		if err == nil {
			return // its end is told like any other
		}
		m.post(ctx, func() {
			m.log.Warn("cannot disconnect", "name", e.config.Name, "error", err)
			e.ending = ""
			m.settle(ctx, e)
		})
	})
}
