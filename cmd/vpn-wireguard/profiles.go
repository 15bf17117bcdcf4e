package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// profile is a configuration that the user has: an imported file, a config of
// the daemon's, or both.
type profile struct {
	Name   string       `json:"name"`
	File   string       `json:"file"`
	State  client.State `json:"state"` // "" where the daemon knows nothing of it
	Reason string       `json:"failureReason,omitempty"`

	path string // of the config
}

// profiles lists all, by name. Without the daemon there are the imported files,
// and the error.
func (c *cli) profiles(ctx context.Context) ([]profile, error) {
	own, err := ownFolder()
	if err != nil {
		return nil, err
	}
	names, err := own.names()
	if err != nil {
		return nil, err
	}
	all := map[string]profile{}
	for _, name := range names {
		all[name] = profile{Name: name, File: own.path(name)}
	}
	configs, err := c.configs(ctx)
	for _, p := range configs {
		all[p.Name] = profile{Name: p.Name, File: fileOf(p), State: p.State, Reason: p.FailureReason, path: p.Path}
	}
	list := make([]profile, 0, len(all))
	for _, p := range all {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b profile) int { return strings.Compare(a.Name, b.Name) })
	return list, err
}

// configs are those of this program that the daemon has.
func (c *cli) configs(ctx context.Context) ([]client.ConfigProperties, error) {
	d, err := ui.Dial(ctx, c.bus)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	listed, err := d.ListConfigs(ctx)
	if err != nil {
		return nil, err
	}
	var configs []client.ConfigProperties
	for _, info := range listed {
		if info.App != app {
			continue
		}
		p, err := d.Config(info.Path).Properties(ctx)
		if errors.Is(err, client.ErrNotFound) {
			continue // gone since
		}
		if err != nil {
			return nil, err
		}
		configs = append(configs, p)
	}
	return configs, nil
}

// named is the profile of that name.
func named(all []profile, name string) (profile, error) {
	i := slices.IndexFunc(all, func(p profile) bool { return p.Name == name })
	if i < 0 {
		return profile{}, notFound(name)
	}
	return all[i], nil
}

func notFound(name string) error {
	return &ui.Error{
		Code: ui.ExitNotFound,
		Err:  fmt.Errorf("there is no configuration %q", name),
		Hint: hintList + "; add one: vpn-wireguard import FILE",
	}
}

// locate finds what the user wants to connect: a file, or the name of an
// imported file or of a config. An imported file goes before what a config of
// its name has.
func locate(ctx context.Context, d *client.Client, arg string) (name, file string, err error) {
	if isFile(arg) {
		if file, err = filepath.Abs(arg); err != nil {
			return "", "", err
		}
		return nameOf(file), file, checkName(nameOf(file))
	}
	own, err := ownFolder()
	if err != nil {
		return "", "", err
	}
	if own.has(arg) {
		return arg, own.path(arg), nil
	}
	cfg, err := d.FindConfig(ctx, app, arg)
	if err != nil {
		if errors.Is(err, client.ErrNotFound) {
			err = notFound(arg)
		}
		return "", "", err
	}
	p, err := cfg.Properties(ctx)
	return arg, fileOf(p), err
}

// ensure gives the config of that name, with that file.
func ensure(ctx context.Context, d *client.Client, name, file string) (*client.Config, error) {
	cfg, err := d.FindConfig(ctx, app, name)
	if errors.Is(err, client.ErrNotFound) {
		return d.CreateConfig(ctx, app, name, client.ConfigOptions{Data: dataOf(file)})
	}
	if err != nil {
		return nil, err
	}
	p, err := cfg.Properties(ctx)
	if err != nil {
		return nil, err
	}
	if fileOf(p) != file {
		// The administrator's cannot be changed, and names its own file.
		if err := cfg.Update(ctx, client.ConfigUpdate{Data: dataOf(file)}); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}
