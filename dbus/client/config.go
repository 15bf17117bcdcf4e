package client

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// State of a config and of its session.
type State string

// States, in the order of a usual life. Reconnecting comes after Connected
// when the physical network changed under a provider that reconnects.
const (
	StateIdle          State = wire.StateIdle
	StateConnecting    State = wire.StateConnecting
	StateConfigured    State = wire.StateConfigured
	StateConnected     State = wire.StateConnected
	StateReconnecting  State = wire.StateReconnecting
	StateDisconnecting State = wire.StateDisconnecting
	StateFailed        State = wire.StateFailed
)

// Active says whether there is a session in this state.
func (s State) Active() bool { return s != StateIdle && s != StateFailed && s != "" }

// Source says who made a config.
type Source string

// Sources.
const (
	SourceProvider Source = wire.SourceProvider // the app
	SourcePlatform Source = wire.SourcePlatform // the administrator, or another program of the user
)

// ConfigOptions are what CreateConfig stores besides the name.
type ConfigOptions struct {
	// Data is the provider's own. Every program of the user can read it: no
	// secrets. Values may be bool, string, integers, float64, []byte,
	// []string, and []any and map[string]any of these.
	Data        map[string]any
	AutoConnect bool

	// Owner is the uid of another user, for root and those who may manage
	// others' configs. Nil: the caller.
	Owner *uint32
}

func (o ConfigOptions) dict() (dict, error) {
	d := dict{}
	if o.Data != nil {
		data, err := encodeDict(o.Data)
		if err != nil {
			return nil, err
		}
		d.set("data", map[string]godbus.Variant(data))
	}
	if o.AutoConnect {
		d.set("autoConnect", true)
	}
	if o.Owner != nil {
		d.set("owner", *o.Owner)
	}
	return d, nil
}

// ConfigUpdate is what Update changes; what is nil stays.
type ConfigUpdate struct {
	Data        map[string]any
	AutoConnect *bool
	Lockdown    *bool
}

// ConfigProperties is all that the daemon tells of a config.
type ConfigProperties struct {
	Path          string         `json:"path"`
	App           string         `json:"app"`
	Name          string         `json:"name"`
	Owner         uint32         `json:"owner"`
	Source        Source         `json:"source"`
	State         State          `json:"state"`
	Session       string         `json:"session,omitempty"` // path, "" when there is none
	Data          map[string]any `json:"data"`
	AutoConnect   bool           `json:"autoConnect"`
	Lockdown      bool           `json:"lockdown"`
	LastConnected time.Time      `json:"lastConnected,omitzero"`
	FailureReason string         `json:"failureReason,omitempty"`
}

func (p *ConfigProperties) apply(from properties) {
	get(from, "App", &p.App)
	get(from, "Name", &p.Name)
	get(from, "Owner", &p.Owner)
	get(from, "Source", (*string)(&p.Source))
	get(from, "State", (*string)(&p.State))
	from.path("Session", &p.Session)
	var data map[string]godbus.Variant
	if get(from, "Data", &data); data != nil {
		p.Data = plainDict(data)
	}
	get(from, "AutoConnect", &p.AutoConnect)
	get(from, "Lockdown", &p.Lockdown)
	from.time("LastConnected", &p.LastConnected)
	get(from, "FailureReason", &p.FailureReason)
}

// Config is a handle on one saved configuration. It holds nothing: it stays
// good over restarts of the daemon and costs nothing to drop. Calls about a
// config that is gone, or another user's, answer ErrNotFound.
type Config struct {
	c    *Client
	path string
}

// Config is a handle on the config at a path, without asking whether it is
// there.
func (c *Client) Config(path string) *Config { return &Config{c, path} }

// Path of the D-Bus object. The same user, app and name give the same path
// again.
func (cfg *Config) Path() string { return cfg.path }

// Connect connects. It returns as soon as the session exists and the provider
// was told; watch State for the rest. Of a config that is active it returns
// the same session again. The user may be asked by polkit, which takes as long
// as it takes: give ctx a generous limit.
func (cfg *Config) Connect(ctx context.Context) (*Session, error) {
	var path godbus.ObjectPath
	if _, err := cfg.c.call(ctx, cfg.path, wire.ConfigInterface+".Connect", []any{dict{}}, &path); err != nil {
		return nil, fmt.Errorf("cannot connect: %w", err)
	}
	return cfg.c.Session(string(path)), nil
}

// Disconnect ends the session, if there is one, and returns when everything
// is undone.
func (cfg *Config) Disconnect(ctx context.Context) error {
	if err := cfg.do(ctx, "Disconnect", dict{}); err != nil {
		return fmt.Errorf("cannot disconnect: %w", err)
	}
	return nil
}

// Remove ends the session and forgets the config. Its provider gets
// ConfigRemoved.
func (cfg *Config) Remove(ctx context.Context) error {
	if err := cfg.do(ctx, "Remove", dict{}); err != nil {
		return fmt.Errorf("cannot remove the config: %w", err)
	}
	return nil
}

// ShowConfigureDialog asks the provider to show its settings of the config.
func (cfg *Config) ShowConfigureDialog(ctx context.Context) error {
	if err := cfg.do(ctx, "ShowConfigureDialog", dict{}); err != nil {
		return fmt.Errorf("cannot show the settings: %w", err)
	}
	return nil
}

// Update changes what the user may change.
func (cfg *Config) Update(ctx context.Context, u ConfigUpdate) error {
	d, err := ConfigOptions{Data: u.Data}.dict()
	if u.AutoConnect != nil {
		d.set("autoConnect", *u.AutoConnect)
	}
	if u.Lockdown != nil {
		d.set("lockdown", *u.Lockdown)
	}
	if err == nil {
		err = cfg.do(ctx, "Update", d)
	}
	if err != nil {
		return fmt.Errorf("cannot update the config: %w", err)
	}
	return nil
}

// Properties reads everything about the config.
func (cfg *Config) Properties(ctx context.Context) (ConfigProperties, error) {
	all, err := cfg.c.getAll(ctx, cfg.path, wire.ConfigInterface)
	if err != nil {
		return ConfigProperties{}, fmt.Errorf("cannot read the config: %w", err)
	}
	p := ConfigProperties{Path: cfg.path}
	p.apply(all)
	return p, nil
}

func (cfg *Config) do(ctx context.Context, member string, d dict) error {
	_, err := cfg.c.call(ctx, cfg.path, wire.ConfigInterface+"."+member, []any{d})
	return err
}

// configPath is where the config of a user, app and name is, as the API
// documents it. A list does not say whose its configs are.
func configPath(uid uint32, app, name string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\x00%s\x00%s", uid, app, name))
	return fmt.Sprintf("%s/%x", wire.ConfigRoot, sum[:16])
}
