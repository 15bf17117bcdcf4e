package client

import (
	"context"
	"fmt"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// ConfigInfo is one line of ListConfigs.
type ConfigInfo struct {
	Path  string `json:"path"`
	App   string `json:"app"`
	Name  string `json:"name"`
	State State  `json:"state"`
}

// SessionInfo is one line of ListSessions.
type SessionInfo struct {
	Path      string `json:"path"`
	Config    string `json:"config"` // path
	Interface string `json:"interface"`
}

// ProviderInfo is one line of ListProviders.
type ProviderInfo struct {
	App         string `json:"app"`
	Registered  bool   `json:"registered"` // it runs
	DisplayName string `json:"displayName,omitempty"`
	Icon        string `json:"icon,omitempty"`
}

// Health is one thing that is wrong with the daemon or its host.
type Health struct {
	Code     string `json:"code"`
	Severity string `json:"severity"`
	Text     string `json:"text"`
}

// ManagerProperties is what the daemon tells of itself.
type ManagerProperties struct {
	Version  string   `json:"version"`
	Features []string `json:"features"`
	Sessions []string `json:"sessions"` // paths
	Health   []Health `json:"health"`
}

// Properties reads what the daemon tells of itself.
func (c *Client) Properties(ctx context.Context) (ManagerProperties, error) {
	all, err := c.getAll(ctx, wire.RootPath, wire.ManagerInterface)
	if err != nil {
		return ManagerProperties{}, fmt.Errorf("cannot read the daemon's state: %w", err)
	}
	var p ManagerProperties
	get(all, "Version", &p.Version)
	get(all, "Features", &p.Features)
	var sessions []godbus.ObjectPath
	get(all, "Sessions", &sessions)
	for _, s := range sessions {
		p.Sessions = append(p.Sessions, string(s))
	}
	var health [][]any
	get(all, "Health", &health)
	for _, item := range health {
		var h Health
		if godbus.Store(item, &h.Code, &h.Severity, &h.Text) == nil {
			p.Health = append(p.Health, h)
		}
	}
	return p, nil
}

// ListConfigs lists the configs that the caller may see: its own, for root
// all.
func (c *Client) ListConfigs(ctx context.Context) ([]ConfigInfo, error) {
	var rows []struct {
		Path             godbus.ObjectPath
		App, Name, State string
	}
	if _, err := c.manager(ctx, "ListConfigs", nil, &rows); err != nil {
		return nil, fmt.Errorf("cannot list configs: %w", err)
	}
	out := make([]ConfigInfo, 0, len(rows))
	for _, r := range rows {
		out = append(out, ConfigInfo{string(r.Path), r.App, r.Name, State(r.State)})
	}
	return out, nil
}

// ListSessions lists the sessions that the caller may see.
func (c *Client) ListSessions(ctx context.Context) ([]SessionInfo, error) {
	var rows []struct {
		Path, Config godbus.ObjectPath
		Interface    string
	}
	if _, err := c.manager(ctx, "ListSessions", nil, &rows); err != nil {
		return nil, fmt.Errorf("cannot list sessions: %w", err)
	}
	out := make([]SessionInfo, 0, len(rows))
	for _, r := range rows {
		out = append(out, SessionInfo{string(r.Path), string(r.Config), r.Interface})
	}
	return out, nil
}

// ListProviders lists the apps of the caller's uid that the daemon knows.
func (c *Client) ListProviders(ctx context.Context) ([]ProviderInfo, error) {
	var rows []struct {
		App  string
		More map[string]godbus.Variant
	}
	if _, err := c.manager(ctx, "ListProviders", nil, &rows); err != nil {
		return nil, fmt.Errorf("cannot list providers: %w", err)
	}
	out := make([]ProviderInfo, 0, len(rows))
	for _, r := range rows {
		p := ProviderInfo{App: r.App}
		get(r.More, "registered", &p.Registered)
		get(r.More, "displayName", &p.DisplayName)
		get(r.More, "icon", &p.Icon)
		out = append(out, p)
	}
	return out, nil
}

// ForgetProvider ends the sessions of an app of the caller's uid, removes its
// configs and what was remembered of the user's consent.
func (c *Client) ForgetProvider(ctx context.Context, app string) error {
	if _, err := c.manager(ctx, "ForgetProvider", []any{app, dict{}}); err != nil {
		return fmt.Errorf("cannot forget %s: %w", app, err)
	}
	return nil
}

// CreateConfig saves a config of an app. The caller need not be the app: then
// its provider is told by ConfigCreated.
func (c *Client) CreateConfig(ctx context.Context, app, name string, o ConfigOptions) (*Config, error) {
	var path godbus.ObjectPath
	d, err := o.dict()
	if err == nil {
		_, err = c.manager(ctx, "CreateConfig", []any{app, name, d}, &path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot create the config %q: %w", name, err)
	}
	return c.Config(string(path)), nil
}

// FindConfig finds a config of the caller's uid.
func (c *Client) FindConfig(ctx context.Context, app, name string) (*Config, error) {
	var path godbus.ObjectPath
	if _, err := c.manager(ctx, "FindConfig", []any{app, name, dict{}}, &path); err != nil {
		return nil, fmt.Errorf("cannot find the config %q: %w", name, err)
	}
	return c.Config(string(path)), nil
}

// ShowAddDialog asks an app to show its dialog for a new config. The app is
// started if need be.
func (c *Client) ShowAddDialog(ctx context.Context, app string) error {
	if _, err := c.manager(ctx, "ShowAddDialog", []any{app, dict{}}); err != nil {
		return fmt.Errorf("cannot show the dialog of %s: %w", app, err)
	}
	return nil
}

// manager calls a method of the root object.
func (c *Client) manager(ctx context.Context, member string, args []any, results ...any) (godbus.Sequence, error) {
	return c.call(ctx, wire.RootPath, wire.ManagerInterface+"."+member, args, results...)
}
