package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// refresh is how often --watch reads the counters.
const refresh = 2 * time.Second

func (c *cli) status() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Show what is connected, with addresses, routes, DNS and counters",
		Example: `  vpnctl status
  vpnctl status --watch Work
  vpnctl status --json | jq '.[].session.statistics'`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.completeName(false),
	}
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again when it changes, until interrupted; with --json one line each time")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if watch {
			return c.do(0, func(ctx context.Context, d *client.Client, args []string) error {
				return c.watchStatus(ctx, d, args, asJSON)
			})(cmd, args)
		}
		return c.do(readLimit, func(ctx context.Context, d *client.Client, args []string) error {
			report, err := readStatus(ctx, d, args)
			if err != nil {
				return err
			}
			if asJSON {
				return ui.JSON(c.out.w, report.Connections)
			}
			c.printStatus(report)
			return nil
		})(cmd, args)
	}
	return cmd
}

// connection is a config and its session, if it has one.
type connection struct {
	Config  client.ConfigProperties   `json:"config"`
	Session *client.SessionProperties `json:"session,omitempty"`
}

type statusReport struct {
	Connections []connection
	Health      []client.Health
}

// readStatus reads the configs with a session, or the one that is named.
func readStatus(ctx context.Context, d *client.Client, args []string) (statusReport, error) {
	var report statusReport
	m, err := d.Properties(ctx)
	if err != nil {
		return report, err
	}
	report.Health = m.Health
	report.Connections = []connection{} // "[]" in JSON
	all, err := configs(ctx, d)
	if err != nil {
		return report, err
	}
	if len(args) > 0 {
		info, err := match(all, args[0])
		if err != nil {
			return report, err
		}
		all = []client.ConfigInfo{info}
	}
	for _, info := range all {
		if len(args) == 0 && !info.State.Active() {
			continue
		}
		one, err := readConnection(ctx, d, info.Path)
		if errors.Is(err, client.ErrNotFound) && len(args) == 0 {
			continue // gone since
		}
		if err != nil {
			return report, err
		}
		report.Connections = append(report.Connections, one)
	}
	return report, nil
}

func readConnection(ctx context.Context, d *client.Client, path string) (connection, error) {
	config, err := d.Config(path).Properties(ctx)
	if err != nil || config.Session == "" {
		return connection{Config: config}, err
	}
	session, err := d.Session(config.Session).Properties(ctx)
	if errors.Is(err, client.ErrNotFound) {
		return connection{Config: config}, nil // ended since
	}
	return connection{config, &session}, err
}

func (c *cli) printStatus(report statusReport) {
	if len(report.Connections) == 0 {
		c.out.line("Nothing is connected.")
	}
	for i, one := range report.Connections {
		if i > 0 {
			c.out.line("")
		}
		c.out.line("%s (%s)", ui.Clean(one.Config.Name), ui.Clean(one.Config.App))
		c.out.block("  ", connectionFields(one))
	}
	c.printHealth(report.Health)
}

func connectionFields(one connection) []field {
	fields := []field{
		{"State", string(one.Config.State)},
		{"Reason", one.Config.FailureReason},
	}
	if one.Config.Lockdown {
		fields = append(fields, field{"Lockdown", yesNo(true)})
	}
	s := one.Session
	if s == nil {
		return append(fields, field{"Last connected", when(one.Config.LastConnected)})
	}
	if !s.ConnectedSince.IsZero() {
		fields = append(fields, field{"Since", when(s.ConnectedSince)})
	}
	fields = append(fields,
		field{"Interface", fmt.Sprintf("%s (MTU %d)", s.Interface, s.MTU)},
		field{"Addresses", some(s.Addresses)},
		field{"Included", some(s.InclusionList)},
		field{"Excluded", some(s.ExclusionList)},
		field{"DNS", some(s.DNSServers)},
		field{"DNS for", strings.Join(s.MatchDomains, ", ")},
		field{"Search", strings.Join(s.DomainSearch, ", ")},
		field{"Reconnects", yesNo(s.Reconnect)},
	)
	return append(append(fields, field{"Uplink", uplink(s)}), counters(s.Statistics)...)
}

func uplink(s *client.SessionProperties) string {
	switch u := s.Uplink; {
	case u == nil && s.State == client.StateReconnecting:
		return "none"
	case u == nil:
		return ""
	case u.Gateway == "":
		return u.Interface
	default:
		return u.Interface + ", gateway " + u.Gateway
	}
}

func counters(s client.Statistics) []field {
	fields := []field{
		{"Sent", fmt.Sprintf("%s in %d packets", ui.Size(s.TxBytes, 1), s.TxPackets)},
		{"Received", fmt.Sprintf("%s in %d packets", ui.Size(s.RxBytes, 1), s.RxPackets)},
	}
	var dropped []string
	for _, reason := range slices.Sorted(maps.Keys(s.Dropped)) {
		if n := s.Dropped[reason]; n > 0 {
			dropped = append(dropped, strconv.FormatUint(n, 10)+" "+reason)
		}
	}
	return append(fields, field{"Dropped", strings.Join(dropped, ", ")})
}

// watchStatus shows the status again at each change and, as no signal tells of
// counters, every few seconds where somebody looks.
func (c *cli) watchStatus(ctx context.Context, d *client.Client, args []string, asJSON bool) error {
	changes, err := d.Watch(ctx)
	if err != nil {
		return err
	}
	var tick <-chan time.Time
	if c.out.terminal {
		ticker := time.NewTicker(refresh)
		defer ticker.Stop()
		tick = ticker.C
	}
	waiting := false // and the user knows
	for {
		report, err := readStatus(ctx, d, args)
		switch {
		case ctx.Err() != nil:
			return nil // interrupted: that is how it ends
		case errors.Is(err, client.ErrNotRunning):
			if !waiting {
				fmt.Fprintln(c.stderr, "vpnctl: vpnproviderd is not running; waiting for it")
			}
			waiting = true
		case err != nil:
			return err
		default:
			waiting = false
			if err := c.showAgain(report, asJSON); err != nil {
				return err
			}
		}
		select {
		case _, ok := <-changes:
			if !ok {
				return endOfWatch(ctx)
			}
		case <-tick:
		}
		if !settle(changes) {
			return endOfWatch(ctx)
		}
	}
}

func (c *cli) showAgain(report statusReport, asJSON bool) error {
	if asJSON {
		return c.out.jsonLine(report.Connections)
	}
	if c.out.terminal {
		fmt.Fprint(c.out.w, "\x1b[H\x1b[2J")
	}
	c.printStatus(report)
	if !c.out.terminal {
		c.out.line("")
	}
	return nil
}

// settle takes the changes that belong together, so that one status shows
// them. It is false at the end of the changes.
func settle(changes <-chan client.Change) bool {
	quiet := time.NewTimer(100 * time.Millisecond)
	defer quiet.Stop()
	for {
		select {
		case _, ok := <-changes:
			if !ok {
				return false
			}
		case <-quiet.C:
			return true
		}
	}
}

// endOfWatch is nil when the user ended it.
func endOfWatch(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	return client.ErrClosed
}
