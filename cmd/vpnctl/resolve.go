package main

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

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
	return client.ConfigInfo{}, &failure{code: exitNotFound, err: fmt.Errorf("there is no config %q", name), hint: hintList}
}

func ambiguous(name string, found []client.ConfigInfo) error {
	var which []string
	for _, c := range found {
		which = append(which, fmt.Sprintf("%s/%s (%s)", c.App, c.Name, id(c.Path)))
	}
	return &failure{
		code: exitUsage,
		err:  fmt.Errorf("%q may be any of %s", name, strings.Join(which, ", ")),
		hint: "pass more of the name, app/name, or the id",
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

// completeName offers the names of configs that are not among the arguments
// yet; many says whether there may be more than one.
func (c *cli) completeName(many bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 && !many {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		d, err := c.dial(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer d.Close()
		all, err := configs(ctx, d)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		for _, info := range all {
			if strings.HasPrefix(info.Name, begun) && !slices.Contains(args, info.Name) {
				out = append(out, cobra.CompletionWithDesc(info.Name, fmt.Sprintf("%s, %s", info.App, info.State)))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
