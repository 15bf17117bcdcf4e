package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/commands"
	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
)

const (
	// app is the provider of every tunnel that this program makes.
	app = "org.vpnprovider.WireGuard"

	// callTime bounds calls of the daemon's that ask nobody, and askTime
	// those for which the user may have to give a password.
	callTime = 30 * time.Second
	askTime  = 3 * time.Minute
)

// hintList says where the names are.
const hintList = "see the names: vpn-wireguard list"

// cli is one run of the program. say and complain may be used from any
// goroutine.
type cli struct {
	stdout, stderr io.Writer // for several goroutines, as files are
	bus            string
	verbose        bool
	started        bool // a command runs: errors are no longer about its use
}

// run is the whole program. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &cli{stdout: stdout, stderr: stderr}
	p := ui.Program{
		Name: "vpn-wireguard", NotFound: hintList,
		NotAuthorized: "try it in a session at this machine's screen, or ask its administrator",
	}
	return commands.Run(ctx, p, c.root(), &c.started, args, stdout, stderr)
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vpn-wireguard",
		Short: "WireGuard without root",
		Long: `Connect to WireGuard VPNs without root: vpnproviderd makes the tunnel.

A NAME is that of an imported file, without .conf; files are those of
wg-quick(8).

Exit codes: 0 done, 1 another failure, 2 wrong use, 3 time is over, 4 connecting
failed, 5 disconnecting failed, 8 the daemon is not running, 10 no such
configuration, 130 interrupted.`,
		Example: `  vpn-wireguard import work.conf
  vpn-wireguard up work
  vpn-wireguard status`,
		Version: version,
	}
	root.PersistentFlags().StringVar(&c.bus, "bus", "", "D-Bus `ADDRESS` instead of the system bus")
	root.AddCommand(c.up(), c.down(), c.status(), c.serve(), c.list(), c.imports(), c.remove())
	return root
}

// do runs a command within a time; 0 is none.
func (c *cli) do(limit time.Duration, act func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c.started = true
		ctx := cmd.Context()
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		return act(ctx, args)
	}
}

// change is do for a command about which polkit may ask for a password.
func (c *cli) change(act func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return c.do(askTime, func(ctx context.Context, args []string) error {
		defer ui.Ask(ctx, c.bus)()
		return act(ctx, args)
	})
}

// completeName completes names of configurations.
func (c *cli) completeName(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	all, _ := c.profiles(ctx)
	var names []string
	for _, p := range all {
		names = append(names, p.Name)
	}
	directive := cobra.ShellCompDirectiveNoFileComp
	if cmd.Name() == "up" {
		directive = cobra.ShellCompDirectiveDefault // a file, too
	}
	return names, directive
}

// say prints a line of the result.
func (c *cli) say(format string, args ...any) {
	fmt.Fprintln(c.stdout, ui.CleanLines(fmt.Sprintf(format, args...)))
}

// complain prints a line beside it.
func (c *cli) complain(format string, args ...any) {
	fmt.Fprintln(c.stderr, ui.CleanLines(fmt.Sprintf("vpn-wireguard: "+format, args...)))
}
