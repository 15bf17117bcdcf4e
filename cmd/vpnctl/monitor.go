package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func (c *cli) monitor() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Print changes as they come",
		Long: `Print what is there, and then changes as they come, until interrupted. With
--json each is one line: an object with the time, the kind of change and all
that is known of the config or session.`,
		Example: `  vpnctl monitor
  vpnctl monitor --json | jq --unbuffered -r 'select(.config) | .config.state'`,
		Args: cobra.NoArgs,
		RunE: c.do(0, func(ctx context.Context, d *client.Client, _ []string) error {
			changes, err := d.Watch(ctx)
			if err != nil {
				return err
			}
			m := monitor{cli: c, names: make(map[string]string), states: make(map[string]client.State)}
			for change := range changes {
				if asJSON {
					err = c.out.jsonLine(stamped{time.Now(), change})
				} else {
					m.print(change)
				}
				if err != nil {
					return err
				}
			}
			return endOfWatch(ctx)
		}),
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

type stamped struct {
	Time time.Time `json:"time"`
	client.Change
}

// monitor turns changes into lines.
type monitor struct {
	cli    *cli
	names  map[string]string       // of configs, by path
	states map[string]client.State // of configs, as printed
	live   bool                    // what was there before has been printed
}

func (m *monitor) print(change client.Change) {
	switch {
	case change.Config != nil:
		m.config(change)
	case change.Session != nil:
		m.session(change)
	case change.Kind == client.Stopped:
		m.line("vpnproviderd stopped")
	case change.Kind == client.Synced:
		if m.live {
			m.line("vpnproviderd is running again")
		}
		m.live = true
	}
}

func (m *monitor) config(change client.Change) {
	p := change.Config
	m.names[p.Path] = p.Name
	switch change.Kind {
	case client.Added:
		m.states[p.Path] = p.State
		if m.live {
			m.line(p.Name, "created", "by", p.App)
		} else {
			m.line(p.Name, string(p.State))
		}
	case client.Removed:
		delete(m.states, p.Path)
		m.line(p.Name, "removed")
	default:
		if p.State != m.states[p.Path] {
			m.states[p.Path] = p.State
			words := []string{string(p.State)}
			if !p.State.Active() && p.FailureReason != "" {
				words = append(words, "("+p.FailureReason+")")
			}
			m.line(p.Name, words...)
		}
		for _, name := range change.Fields {
			switch name {
			case "AutoConnect":
				m.line(p.Name, "auto-connect", yesNo(p.AutoConnect))
			case "Lockdown":
				m.line(p.Name, "lockdown", yesNo(p.Lockdown))
			case "Data":
				m.line(p.Name, "new settings")
			}
		}
	}
}

// session prints what the config's state does not tell.
func (m *monitor) session(change client.Change) {
	s := change.Session
	name := m.names[s.Config]
	if change.Kind != client.Changed {
		return
	}
	if slices.Contains(change.Fields, "Addresses") && len(s.Addresses) > 0 {
		m.line(name, "addresses", some(s.Addresses), "on", s.Interface)
	}
	if slices.Contains(change.Fields, "DNSServers") && len(s.DNSServers) > 0 {
		m.line(name, "DNS", some(s.DNSServers))
	}
	if slices.Contains(change.Fields, "Uplink") {
		if s.Uplink == nil {
			m.line(name, "no network below")
		} else {
			m.line(name, "now over", s.Uplink.Interface)
		}
	}
}

func (m *monitor) line(subject string, words ...string) {
	text := ui.Clean(subject)
	if len(words) > 0 {
		for i, word := range words {
			words[i] = m.cli.out.state(ui.Clean(word))
		}
		text += ": " + strings.Join(words, " ")
	}
	m.cli.out.line("%s %s", time.Now().Format(time.TimeOnly), text)
}
