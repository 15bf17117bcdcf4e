package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

const (
	// app is the provider of every tunnel that this program makes.
	app = "org.vpnprovider.WireGuard"

	// callTime bounds calls of the daemon's that ask nobody, and askTime
	// those for which the user may have to give a password.
	callTime = 30 * time.Second
	askTime  = 3 * time.Minute
)

// cli is one run of the program. say and complain may be used from any
// goroutine.
type cli struct {
	stdout, stderr io.Writer
	bus            string
	verbose        bool
	started        bool // a command runs: errors are no longer about its use

	mu sync.Mutex // of the writers
}

// run is the whole program. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &cli{stdout: stdout, stderr: stderr}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !c.started {
		err = &failure{exitUsage, err, "see: vpn-wireguard --help"}
	}
	return c.report(ctx, err)
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vpn-wireguard",
		Short: "WireGuard without root",
		Long: `Connect to WireGuard VPNs without root: vpnproviderd makes the tunnel.

A NAME is that of an imported file, without .conf; files are those of
wg-quick(8).

Exit codes: 0 done, 1 another failure, 2 wrong use, 4 connecting failed,
5 disconnecting failed, 8 the daemon is not running, 10 no such configuration,
130 interrupted.`,
		Example: `  vpn-wireguard import work.conf
  vpn-wireguard up work
  vpn-wireguard status`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("vpn-wireguard {{.Version}}\n")
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

func (c *cli) dial(ctx context.Context) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var opts []client.Option
	if c.bus != "" {
		opts = append(opts, client.WithAddress(c.bus))
	}
	d, err := client.Dial(ctx, opts...)
	if err != nil {
		return nil, &failure{exitNotRunning, err, "check that D-Bus runs, or pass --bus ADDRESS"}
	}
	return d, nil
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
	slices.Sort(names)
	directive := cobra.ShellCompDirectiveNoFileComp
	if cmd.Name() == "up" {
		directive = cobra.ShellCompDirectiveDefault // a file, too
	}
	return names, directive
}

// say prints a line of the result.
func (c *cli) say(format string, args ...any) { c.print(c.stdout, format, args) }

// complain prints a line beside it.
func (c *cli) complain(format string, args ...any) {
	c.print(c.stderr, "vpn-wireguard: "+format, args)
}

func (c *cli) print(to io.Writer, format string, args []any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintln(to, clean(fmt.Sprintf(format, args...)))
}

// clean keeps what others wrote from reaching the terminal as a command.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// Exit codes, those of vpnctl.
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2
	exitNotConnected = 4
	exitStillThere   = 5
	exitNotRunning   = 8
	exitNotFound     = 10
	exitInterrupted  = 130
)

// failure is an error with what the program makes of it.
type failure struct {
	code int
	err  error
	hint string // what to do next
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// report tells the user of an error and returns the exit code.
func (c *cli) report(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	code, hint := exitFailed, ""
	if f, ok := errors.AsType[*failure](err); ok {
		code, hint = f.code, f.hint
	}
	switch {
	case errors.Is(err, client.ErrNotRunning):
		code, hint = exitNotRunning, "start the daemon: systemctl start vpnproviderd"
	case errors.Is(err, client.ErrNotFound):
		code, hint = exitNotFound, "see the names: vpn-wireguard list"
	case errors.Is(err, client.ErrNotAuthorized) && hint == "":
		hint = "try it in a session at this machine's screen, or ask its administrator"
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		code = exitInterrupted
	}
	c.complain("%v", err)
	if hint != "" {
		c.print(c.stderr, "  %s", []any{hint})
	}
	return code
}
