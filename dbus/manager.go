package dbus

import (
	"context"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
)

func managerMethods() map[string]handler {
	return map[string]handler{
		"RegisterProvider":   registerProvider,
		"UnregisterProvider": unregisterProvider,
		"ListProviders":      listProviders,
		"ForgetProvider":     forgetProvider,
		"RegisterAgent":      registerAgent,
		"CreateConfig":       createConfig,
		"DestroyConfig":      destroyConfig,
		"FindConfig":         findConfig,
		"ListConfigs":        reads(listConfigs),
		"ListSessions":       reads(listSessions),
		"ShowAddDialog":      showAddDialog,
		"Explain":            explain,
		"Unlock":             unlock,
		"Subscribe":          func(r *request) ([]any, error) { return nil, r.setMute(false) },
		"Unsubscribe":        func(r *request) ([]any, error) { return nil, r.setMute(true) },
	}
}

func registerProvider(r *request) ([]any, error) {
	o := r.options(1)
	var p driver.ProviderOptions
	p.DisplayName, _ = option[string](o, "displayName")
	p.Icon, _ = option[string](o, "icon")
	p.PacketSignals, _ = option[bool](o, "packetSignals")
	replace, _ := option[bool](o, "replace")
	if err := o.done(); err != nil {
		return nil, err
	}
	// Who is the provider was asked about before, of an earlier process perhaps: a
	// restart must not end the session of an app that nobody sits before.
	if !r.manager.IsRegistered(r.caller, r.text(0)) {
		if err := r.authorize(r.ctx, actionManageOwn); err != nil {
			return nil, err
		}
	}
	if err := r.watchProcess(r.peer); err != nil {
		return nil, err
	}
	done, err := r.manager.RegisterProvider(r.caller, r.text(0), p, replace)
	if err != nil {
		return nil, err
	}
	if r.hasEnded(r.peer) { // meanwhile
		r.manager.ConnectionGone(r.peer.name)
		return nil, errProcessEnded
	}
	if done.New {
		r.after = r.autoConnect
	}
	return []any{dict{
		"version":  godbus.MakeVariant(r.opts.Version),
		"features": godbus.MakeVariant(features()),
		"configs":  godbus.MakeVariant(configPaths(done.Configs)),
	}}, nil
}

// autoConnect comes after the reply of RegisterProvider, so that the app knows
// its configs. It asks nobody.
func (r *request) autoConnect() {
	r.quiet = true
	err := r.manager.AutoConnect(r.ctx, r.caller, r.text(0), driver.Connect{
		Authorize:    func(ctx context.Context) error { return r.authorize(ctx, actionConnect) },
		Trust:        r.trust(false),
		PassLockdown: func(ctx context.Context) error { return r.authorize(ctx, actionSetLockdown) },
		Waiting:      r.detach,
	})
	if err != nil {
		r.log.Warn("cannot connect by itself", "APP", r.text(0), "error", err)
	}
}

func registerAgent(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	r.manager.RegisterAgent(r.caller)
	if r.hasEnded(r.peer) { // meanwhile
		r.manager.ConnectionGone(r.peer.name)
	}
	return nil, nil
}

func configPaths(ids []driver.ConfigID) []godbus.ObjectPath {
	paths := make([]godbus.ObjectPath, len(ids))
	for i, id := range ids {
		paths[i] = configPath(id)
	}
	return paths
}

func unregisterProvider(r *request) ([]any, error) {
	if err := r.noOptions(1); err != nil {
		return nil, err
	}
	return nil, r.manager.UnregisterProvider(r.caller, r.text(0))
}

type providerEntry struct {
	App  string
	Info dict
}

func listProviders(r *request) ([]any, error) {
	list := []providerEntry{}
	for _, p := range r.manager.ListProviders(r.caller) {
		list = append(list, providerEntry{p.App, dict{
			"registered":  godbus.MakeVariant(p.Registered),
			"displayName": godbus.MakeVariant(p.DisplayName),
			"icon":        godbus.MakeVariant(p.Icon),
		}})
	}
	return []any{list}, nil
}

func forgetProvider(r *request) ([]any, error) {
	owner, err := r.owner(1)
	if err != nil {
		return nil, err
	}
	if err := r.authorizeOn(r.ctx, owner, actionManageOwn); err != nil {
		return nil, err
	}
	return nil, r.manager.ForgetProvider(r.caller, owner, r.text(0))
}

// owner reads options that know no key but `owner`: whose app is meant, by
// default the caller's.
func (r *request) owner(i int) (uint32, error) {
	o := r.options(i)
	owner, given := option[uint32](o, "owner")
	if !given {
		owner = r.caller.UID
	}
	return owner, o.done()
}

func createConfig(r *request) ([]any, error) {
	o := r.options(2)
	n := driver.NewConfig{App: r.text(0), Name: r.text(1)}
	data, _ := option[dict](o, "data")
	autoConnect, _ := option[bool](o, "autoConnect")
	owner, other := option[uint32](o, "owner")
	if err := o.done(); err != nil {
		return nil, err
	}
	n.Data, n.Owner, n.AutoConnect = fromDict(data), r.caller.UID, autoConnect
	if other {
		n.Owner = owner
	}
	if err := r.authorizeOn(r.ctx, n.Owner, actionManageOwn); err != nil {
		return nil, err
	}
	id, err := r.manager.CreateConfig(r.caller, n)
	return []any{configPath(id)}, err
}

func destroyConfig(r *request) ([]any, error) {
	if err := r.noOptions(1); err != nil {
		return nil, err
	}
	id, ok := configID(r.text(0))
	if !ok {
		return nil, driver.Errorf(driver.KindNotFound, "there is no config %s", r.text(0))
	}
	owner, err := r.ownerOfConfig(id)
	if err != nil {
		return nil, err
	}
	if err := r.authorizeOn(r.ctx, owner, actionManageOwn); err != nil {
		return nil, err
	}
	return nil, r.manager.DestroyConfig(r.caller, id)
}

func findConfig(r *request) ([]any, error) {
	owner, err := r.owner(2)
	if err != nil {
		return nil, err
	}
	if owner != r.caller.UID {
		// Where the caller may not, it finds nothing.
		if err := r.authorizeOthers(r.ctx); err != nil && driver.KindOf(err) != driver.KindNotAuthorized {
			return nil, err
		}
	}
	id, err := r.manager.FindConfig(r.caller, owner, r.text(0), r.text(1))
	return []any{configPath(id)}, err
}

type configEntry struct {
	Config           godbus.ObjectPath
	App, Name, State string
}

func listConfigs(_ *request, v driver.View) ([]any, error) {
	list := []configEntry{}
	for _, c := range v.Configs() {
		list = append(list, configEntry{configPath(c.ID), c.App, c.Name, string(c.State)})
	}
	return []any{list}, nil
}

type sessionEntry struct {
	Session, Config godbus.ObjectPath
	Interface       string
}

func listSessions(_ *request, v driver.View) ([]any, error) {
	list := []sessionEntry{}
	for _, s := range v.Sessions() {
		list = append(list, sessionEntry{sessionPath(s.ID), configPath(s.Config), s.Link.Name})
	}
	return []any{list}, nil
}

func showAddDialog(r *request) ([]any, error) {
	owner, err := r.owner(1)
	if err != nil {
		return nil, err
	}
	if owner != r.caller.UID {
		if err := r.authorizeOthers(r.ctx); err != nil {
			return nil, err
		}
	}
	return nil, r.manager.AskForConfig(r.ctx, r.caller, owner, r.text(0), wire.ShowAddDialog, r.detach)
}

func unlock(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	if err := r.authorize(r.ctx, actionSetLockdown); err != nil {
		return nil, err
	}
	// Without polkit, everybody decides on their own lockdowns alone.
	return nil, r.manager.Unlock(r.ctx, r.caller, r.opts.Polkit || r.caller.UID == 0)
}

func explain(r *request) ([]any, error) {
	o := r.options(1)
	uid, given := option[uint32](o, "uid")
	if err := o.done(); err != nil {
		return nil, err
	}
	if !given {
		uid = r.caller.UID
	}
	e, err := r.manager.Explain(r.ctx, r.caller, r.text(0), uid)
	if err != nil {
		return nil, err
	}
	return []any{explanation(r.text(0), uid, e)}, nil
}

// explanation has no keys for what there is none of.
func explanation(destination string, uid uint32, e driver.Explanation) dict {
	d := dict{
		"destination": godbus.MakeVariant(destination),
		"uid":         godbus.MakeVariant(uid),
		"action":      godbus.MakeVariant(e.Action),
		"why":         godbus.MakeVariant(e.Why),
		"dnsServers":  godbus.MakeVariant(texts(e.Servers)),
	}
	if e.Session != 0 {
		d["session"] = godbus.MakeVariant(sessionPath(e.Session))
	}
	w := e.Way
	if w.Table != 0 {
		d["rule"], d["table"] = godbus.MakeVariant(w.Rule), godbus.MakeVariant(w.Table)
	}
	for key, text := range map[string]string{
		"device": w.Interface, "route": shown(w.Block), "gateway": shown(w.Gateway), "source": shown(w.Source),
	} {
		if text != "" {
			d[key] = godbus.MakeVariant(text)
		}
	}
	return d
}

// shown is the text of an address or block, empty for none.
func shown[T interface {
	IsValid() bool
	String() string
}](v T) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

func (r *request) setMute(mute bool) error {
	r.calls.mu.Lock()
	defer r.calls.mu.Unlock()
	r.peer.mute, r.peer.listening = mute, !mute
	r.calls.tellChanged()
	return nil
}
