package dbus

import (
	"context"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
)

func configMethods() map[string]handler {
	return map[string]handler{
		"Connect":             connect,
		"Disconnect":          disconnect,
		"Remove":              removeConfig,
		"ShowConfigureDialog": showConfigureDialog,
		"Update":              updateConfig,
	}
}

func connect(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	session, err := r.manager.Connect(r.ctx, r.caller, r.config, driver.Connect{
		Authorize: func(ctx context.Context) error { return r.authorizeOn(ctx, r.objectOwner, actionConnect) },
		Trust:     r.trust(true),
		Override:  r.authorizeOthers,
		// It opens a way out that the lockdown was not made for.
		PassLockdown: func(ctx context.Context) error { return r.authorize(ctx, actionSetLockdown) },
		Waiting:      r.detach,
	})
	return []any{sessionPath(session)}, err
}

func disconnect(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	return nil, r.manager.Disconnect(r.ctx, r.caller, r.config, func(ctx context.Context) error {
		return r.authorizeOn(ctx, r.objectOwner, actionConnect)
	})
}

func removeConfig(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	if err := r.authorizeOn(r.ctx, r.objectOwner, actionManageOwn); err != nil {
		return nil, err
	}
	return nil, r.manager.RemoveConfig(r.caller, r.config)
}

func showConfigureDialog(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	return nil, r.manager.AskToConfigure(r.ctx, r.caller, r.config, wire.ShowConfigureDialog, r.detach)
}

func updateConfig(r *request) ([]any, error) {
	o := r.options(0)
	var changes driver.ConfigChanges
	data, withData := option[dict](o, "data")
	autoConnect, withAuto := option[bool](o, "autoConnect")
	lockdown, withLockdown := option[bool](o, "lockdown")
	if err := o.done(); err != nil {
		return nil, err
	}
	if withData {
		d := driver.Data(fromDict(data))
		changes.Data = &d
	}
	if withAuto {
		changes.AutoConnect = &autoConnect
	}
	if withLockdown {
		changes.Lockdown = &lockdown
		if err := r.authorize(r.ctx, actionSetLockdown); err != nil {
			return nil, err
		}
	}
	if withData || withAuto || !withLockdown {
		if err := r.authorizeOn(r.ctx, r.objectOwner, actionManageOwn); err != nil {
			return nil, err
		}
	}
	return nil, r.manager.UpdateConfig(r.ctx, r.caller, r.config, changes)
}
