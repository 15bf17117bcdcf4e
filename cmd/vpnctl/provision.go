package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/driver/platform"
)

// provision is for administrators, who need no daemon for it.
func (c *cli) provision() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "provision",
		Short: "Check files with configs for users",
		Long: `Check the files with which an administrator gives users configs:
/etc/vpnprovider/configs.d/*.toml, see vpnproviderd.toml(5).`,
		Example: `  vpnctl provision check /etc/vpnprovider/configs.d/*.toml`,
	}
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(&cobra.Command{
		Use:   "check FILE...",
		Short: "Say what is wrong in files before they are used",
		Long: `Read files as the daemon would, and print FILE:LINE: KEY: PROBLEM for all that is
wrong. Who owns a file, and who may write it, is not looked at. The daemon need
not run.`,
		Example: `  vpnctl provision check work.toml
  vpnctl provision check --json /etc/vpnprovider/configs.d/*.toml`,
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return []cobra.Completion{"toml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(_ *cobra.Command, args []string) error {
			c.started = true
			return c.check(args, asJSON)
		},
	})
	return cmd
}

func (c *cli) check(files []string, asJSON bool) error {
	var good []platform.Config
	problems := []platform.Problem{}
	for _, file := range files {
		config, wrong := platform.Read(file)
		problems = append(problems, wrong...)
		if len(wrong) == 0 {
			good = append(good, config)
		}
	}
	twice := platform.Duplicates(good)
	problems = append(problems, twice...)
	if asJSON {
		if err := ui.JSON(c.out.w, problems); err != nil {
			return err
		}
	} else {
		for _, p := range problems {
			c.out.line("%s", ui.Clean(p.String()))
		}
		for _, g := range good {
			if !slices.ContainsFunc(twice, func(p platform.Problem) bool { return p.File == g.File }) {
				c.out.line("%s", ui.Clean(summary(g)))
			}
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("problems found: %d", len(problems))
	}
	return nil
}

// summary says what a good file does.
func summary(g platform.Config) string {
	var more []string
	if g.AutoConnect {
		more = append(more, "autoConnect")
	}
	if g.Lockdown {
		more = append(more, "lockdown")
	}
	text := fmt.Sprintf("%s: %s of app %s for uid %d", g.File, g.Name, g.App, g.UID)
	if len(more) > 0 {
		text += ", " + strings.Join(more, ", ")
	}
	return text
}
