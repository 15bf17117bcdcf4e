package main

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// id is the last element of a config's path.
func id(config string) string { return path.Base(config) }

// configs lists the configs, sorted as people look for them.
func configs(ctx context.Context, d *client.Client) ([]client.ConfigInfo, error) {
	all, err := d.ListConfigs(ctx)
	slices.SortFunc(all, func(a, b client.ConfigInfo) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.App, b.App), strings.Compare(a.Path, b.Path))
	})
	return all, err
}

// resolve finds the config that a NAME means.
func resolve(ctx context.Context, d *client.Client, name string) (client.ConfigInfo, error) {
	all, err := configs(ctx, d)
	if err != nil {
		return client.ConfigInfo{}, err
	}
	return match(all, name)
}

// match tries what says most first: a path or id, app/name, a name, and then
// beginnings.
func match(all []client.ConfigInfo, name string) (client.ConfigInfo, error) {
	for _, fits := range []func(client.ConfigInfo) bool{
		func(c client.ConfigInfo) bool { return c.Path == name || id(c.Path) == name },
		func(c client.ConfigInfo) bool { return c.App+"/"+c.Name == name },
		func(c client.ConfigInfo) bool { return c.Name == name },
		func(c client.ConfigInfo) bool {
			return name != "" && (strings.HasPrefix(c.Name, name) || strings.HasPrefix(id(c.Path), name))
		},
	} {
		var found []client.ConfigInfo
		for _, c := range all {
			if fits(c) {
				found = append(found, c)
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return client.ConfigInfo{}, ambiguous(name, found)
		}
	}
	return client.ConfigInfo{}, &ui.Error{Code: ui.ExitNotFound, Err: fmt.Errorf("there is no config %q", name), Hint: hintList}
}

// matchAll is match for several: all are known before anything becomes of the
// first.
func matchAll(all []client.ConfigInfo, names []string) ([]client.ConfigInfo, error) {
	var found []client.ConfigInfo
	for _, name := range names {
		info, err := match(all, name)
		if err != nil {
			return nil, err
		}
		found = append(found, info)
	}
	return found, nil
}

func ambiguous(name string, found []client.ConfigInfo) error {
	var which []string
	for _, c := range found {
		which = append(which, fmt.Sprintf("%s/%s (%s)", c.App, c.Name, id(c.Path)))
	}
	return &ui.Error{
		Code: ui.ExitUsage,
		Err:  fmt.Errorf("%q may be any of %s", name, strings.Join(which, ", ")),
		Hint: "pass more of the name, app/name, or the id",
	}
}

// shortIDs are the shortest beginnings of the ids, of 8 characters at least,
// that tell them apart.
func shortIDs(all []client.ConfigInfo) []string {
	for n := 8; ; n++ {
		seen := make(map[string]bool)
		short := make([]string, len(all))
		longest := 0
		for i, c := range all {
			whole := id(c.Path)
			longest = max(longest, len(whole))
			short[i] = whole[:min(n, len(whole))]
			seen[short[i]] = true
		}
		if len(seen) == len(all) || n >= longest {
			return short
		}
	}
}
