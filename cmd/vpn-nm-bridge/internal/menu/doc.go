// Package menu keeps NetworkManager's list of VPNs, and with it the network
// menu of every desktop, like the user's configs: a profile for each, active
// while the config is.
//
// # Who leads
//
// vpnproviderd. What it says of a config is shown; what NetworkManager says of
// a profile is taken for the user's wish only where the user can have wished
// it: an activation that is not ours asks for the config to be connected, and
// one that the user ended, or whose time is over, for it to be disconnected.
// Whatever else ends an activation (the base connection, the plugin,
// NetworkManager itself) says nothing about the tunnel, and the profile is
// activated again.
//
// # How it is done
//
// One goroutine has all state. Everything that happens changes an entry and
// then settles it: settle compares the config with the activation and takes
// the next step, if there is one. Calls to NetworkManager are made there and
// then; those to vpnproviderd may wait for a person who is asked for a
// password, so they have goroutines of their own.
package menu

import (
	"context"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/nm"
)

// Profiles are the VPN profiles of NetworkManager that are ours. Its methods
// are called from one goroutine.
type Profiles interface {
	Profiles(ctx context.Context) (map[godbus.ObjectPath]nm.Settings, error)
	AddProfile(ctx context.Context, s nm.Settings) (godbus.ObjectPath, error)
	UpdateProfile(ctx context.Context, path godbus.ObjectPath, s nm.Settings) error
	DeleteProfile(ctx context.Context, path godbus.ObjectPath) error
}

// Activations are what is active there. Its methods are called from one
// goroutine. An activation that has ended may be named in any of them.
type Activations interface {
	Activations(ctx context.Context) ([]nm.Active, error)
	Read(ctx context.Context, paths []godbus.ObjectPath) []nm.Active
	Activate(ctx context.Context, profile godbus.ObjectPath) (godbus.ObjectPath, error)
	Deactivate(ctx context.Context, active godbus.ObjectPath) error
	Tell(active godbus.ObjectPath, word nm.Word, reason string) error
}

// Configs are what vpnproviderd is asked for. Both methods return when it is
// done; both may be called from any goroutine.
type Configs interface {
	Connect(ctx context.Context, config string) error
	Disconnect(ctx context.Context, config string) error
}
