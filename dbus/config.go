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
		Authorize: func(ctx context.Context) error { return r.authorize(ctx, actionConnect) },
		Override:  r.authorizeOthers,
		Waiting:   r.detach,
	})
	return []any{sessionPath(session)}, err
}

func disconnect(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	if err := r.authorize(r.ctx, actionConnect); err != nil {
		return nil, err
	}
	return nil, r.manager.Disconnect(r.caller, r.config)
}

func removeConfig(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	if err := r.authorize(r.ctx, actionManageOwn); err != nil {
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
	_, withLockdown := option[bool](o, "lockdown")
	switch err := o.done(); {
	case err != nil:
		return nil, err
	case withLockdown:
		return nil, driver.Errorf(driver.KindNotSupported, "lockdown is not supported by this version")
	}
	if withData {
		d := driver.Data(fromDict(data))
		changes.Data = &d
	}
	if withAuto {
		changes.AutoConnect = &autoConnect
	}
	if err := r.authorize(r.ctx, actionManageOwn); err != nil {
		return nil, err
	}
	return nil, r.manager.UpdateConfig(r.caller, r.config, changes)
}
