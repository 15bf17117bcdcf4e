package model

import (
	"cmp"
	"slices"
	"strings"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// Icon is which picture the tray shows.
type Icon int

// Icons.
const (
	Disconnected Icon = iota
	Connecting
	Connected
	Reconnecting
	Failed
	Lockdown // nothing leaves, as nothing is connected
)

// Verb is what a click asks for.
type Verb int

// Verbs. Connect, Disconnect and Configure are about a config, Add is about an
// app.
const (
	Connect Verb = iota + 1
	Disconnect
	Configure
	Add
	Unlock
	Retry // look for the daemon, and start it
	Quit
	Opened // the menu is about to be seen
)

// Action is a click.
type Action struct {
	Verb   Verb
	Target string // path or app
	Name   string // for people
}

// Item is one line of the menu that can be clicked.
type Item struct {
	Label   string
	Checked bool
	Enabled bool
	Action  Action
}

// View is what the tray shows.
type View struct {
	Icon     Icon
	Status   string   // in a few words: tooltip and headline
	Problems []string // what is wrong besides
	Retry    bool     // offered
	Unlock   bool     // offered
	Configs  []Item
	Settings []Item
	Add      []Item
}

// View is what follows from what is known.
func (m *Model) View() View {
	configs, up := m.sorted(), m.service != absent
	names := m.names()
	v := View{Icon: m.icon(configs), Status: m.status(configs, names), Retry: !up, Unlock: up && m.locked()}
	if up {
		for _, h := range m.health {
			if h.Severity != "info" {
				v.Problems = append(v.Problems, clean(h.Text))
			}
		}
	}
	for _, c := range configs {
		name, verb := names[c.Path], Connect
		active := up && c.active()
		if active {
			verb = Disconnect
		}
		label := name
		if state := c.describe(); up && state != "" {
			label += ": " + state
		}
		v.Configs = append(v.Configs, Item{label, active, up, Action{verb, c.Path, name}})
		v.Settings = append(v.Settings, Item{name, false, up, Action{Configure, c.Path, name}})
	}
	for _, p := range m.providers {
		name := clean(cmp.Or(p.DisplayName, p.App))
		v.Add = append(v.Add, Item{name, false, up, Action{Add, p.App, name}})
	}
	slices.SortFunc(v.Add, func(a, b Item) int { return cmp.Compare(strings.ToLower(a.Label), strings.ToLower(b.Label)) })
	return v
}

func (c *config) active() bool { return c.waiting || c.State.Active() }

// describe is a config's state for people; "" is that there is nothing to say.
func (c *config) describe() string {
	var words []string
	switch {
	case c.waiting || c.State == client.StateConnecting || c.State == client.StateConfigured:
		words = append(words, "connecting …")
	case c.State == client.StateReconnecting:
		words = append(words, "reconnecting …")
	case c.State == client.StateDisconnecting:
		words = append(words, "disconnecting …")
	case c.State == client.StateConnected:
		words = append(words, "connected")
	case c.State == client.StateFailed && c.FailureReason != "":
		words = append(words, "failed, "+reason(c.FailureReason))
	case c.State == client.StateFailed:
		words = append(words, "failed")
	}
	if c.Lockdown {
		words = append(words, "lockdown")
	}
	return strings.Join(words, ", ")
}

// leading is the config that matters most, nil when none is active: there is
// one session a host, but the next may be asked for while the last one ends.
func leading(configs []*config) *config {
	rank := func(c *config) int {
		switch {
		case c.State == client.StateConnected:
			return 4
		case c.State == client.StateReconnecting:
			return 3
		case c.waiting || c.State == client.StateConnecting || c.State == client.StateConfigured:
			return 2
		case c.State == client.StateDisconnecting:
			return 1
		default:
			return 0
		}
	}
	if len(configs) == 0 {
		return nil
	}
	best := slices.MaxFunc(configs, func(a, b *config) int { return cmp.Compare(rank(a), rank(b)) })
	if rank(best) == 0 {
		return nil
	}
	return best
}

func (m *Model) icon(configs []*config) Icon {
	if m.service == absent {
		if m.cut {
			return Failed
		}
		return Disconnected
	}
	if c := leading(configs); c != nil {
		switch c.State {
		case client.StateConnected:
			return Connected
		case client.StateReconnecting:
			return Reconnecting
		default:
			return Connecting
		}
	}
	if m.locked() {
		return Lockdown
	}
	if c := m.configs[m.latest]; c != nil && c.State == client.StateFailed {
		return Failed
	}
	return Disconnected
}

func (m *Model) status(configs []*config, names map[string]string) string {
	switch c := leading(configs); {
	case m.service == asking:
		return "Looking for the VPN service …"
	case m.service == absent:
		return "The VPN service is not running"
	case c != nil && c.State == client.StateConnected:
		return "Connected to " + names[c.Path]
	case c != nil && c.State == client.StateReconnecting:
		return "Reconnecting to " + names[c.Path] + " …"
	case c != nil && c.State == client.StateDisconnecting && !c.waiting:
		return "Disconnecting from " + names[c.Path] + " …"
	case c != nil:
		return "Connecting to " + names[c.Path] + " …"
	case m.locked():
		return "Lockdown: nothing leaves without a VPN"
	case len(configs) == 0:
		return "There are no VPNs"
	default:
		return "Not connected"
	}
}

// locked says whether a lockdown is in force, maybe one whose config is gone.
func (m *Model) locked() bool {
	for _, c := range m.configs {
		if c.Lockdown {
			return true
		}
	}
	return slices.ContainsFunc(m.health, func(h client.Health) bool { return h.Code == "lockdown" })
}

// names are what configs, by their paths, are called: by their app too where
// another has the same name.
func (m *Model) names() map[string]string {
	names, same := make(map[string]string, len(m.configs)), make(map[string]int)
	for path, c := range m.configs {
		names[path] = clean(c.Name)
		same[names[path]]++
	}
	for path, c := range m.configs {
		if same[names[path]] > 1 {
			names[path] += " (" + m.appName(c.App) + ")"
		}
	}
	return names
}

func (m *Model) appName(app string) string {
	for _, p := range m.providers {
		if p.App == app && p.DisplayName != "" {
			return clean(p.DisplayName)
		}
	}
	return clean(app)
}

func (m *Model) sorted() []*config {
	var all []*config
	for _, c := range m.configs {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *config) int {
		return cmp.Or(cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), cmp.Compare(a.App, b.App), cmp.Compare(a.Path, b.Path))
	})
	return all
}

// longest is how many characters of a name or a reason are shown.
const longest = 100

// clean makes what an app wrote fit for one line of a menu.
func clean(text string) string {
	runes := []rune(ui.Clean(text))
	if len(runes) > longest {
		runes = append(runes[:longest-1], '…')
	}
	return string(runes)
}
