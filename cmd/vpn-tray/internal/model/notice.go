package model

import (
	"cmp"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// Notice is something that the user is told, in plain text, or no longer.
type Notice struct {
	Key           string // what it is about: the latest notice replaces earlier ones
	Summary, Body string
	Kind          NoticeKind
}

// NoticeKind says how much a notice matters.
type NoticeKind int

// Kinds of notices.
const (
	Bad      NoticeKind = iota // something does not work
	Good                       // it works again
	Withdraw                   // what was told of the key is over
)

const serviceKey = "service"

func (m *Model) tell(kind NoticeKind, key, summary, body string) {
	m.notices = append(m.notices, Notice{Key: key, Summary: summary, Body: body, Kind: kind})
}

func (m *Model) withdraw(key string) { m.tell(Withdraw, key, "", "") }

// news tells of a config's new state, where it is not what the user did and
// sees in the menu anyway.
func (m *Model) news(c *config) {
	switch {
	case c.State == client.StateFailed:
		m.tell(Bad, c.Path, clean(c.Name)+" is not connected", sentence(reason(c.FailureReason)))
		c.open = true
	case c.slow && (c.State == client.StateConnected || c.State == client.StateConfigured):
		m.tell(Good, c.Path, clean(c.Name)+" is connected again", "")
		c.open = false // it goes by itself
	case c.open && c.State != client.StateDisconnecting:
		m.withdraw(c.Path)
		c.open = false
	}
	c.slow = false
}

// tarry tells that a VPN takes its time to reconnect.
func (m *Model) tarry(c *config) {
	c.slow, c.open = true, true
	m.tell(Bad, c.Path, clean(c.Name)+" is reconnecting", "What goes through the VPN is held back until it is connected again.")
}

// vanish tells that the daemon does not come back, where that ends a VPN.
func (m *Model) vanish() {
	m.service = absent
	for _, c := range m.configs {
		m.cut = m.cut || c.State.Active()
		c.waiting = false
	}
	if m.cut {
		m.tell(Bad, serviceKey, "The VPN service has stopped", "VPNs are not connected.")
	}
}

// refused tells that what the user asked for was not done.
func (m *Model) refused(a Action, err error) {
	summary := "The VPN service could not do that"
	switch a.Verb {
	case Connect:
		summary = "Cannot connect " + a.Name
	case Disconnect:
		summary = "Cannot disconnect " + a.Name
	case Add, Configure:
		summary = "Cannot show the settings of " + a.Name
	case Unlock:
		summary = "Cannot end the lockdown"
	default:
	}
	text := err.Error()
	if answer, ok := errors.AsType[*client.Error](err); ok {
		text = answer.Message // without what the summary says
	}
	m.tell(Bad, cmp.Or(a.Target, serviceKey), summary, sentence(clean(text)))
	if c := m.configs[a.Target]; c != nil {
		c.open = true
	}
}

// reason is why a VPN failed, for people.
func reason(given string) string {
	switch given {
	case wire.ReasonProviderFailure:
		return "its app could not connect"
	case wire.ReasonProviderGone:
		return "its app has ended"
	case wire.ReasonChannelClosed:
		return "its app takes no more packets"
	case wire.ReasonTimeout:
		return "it took too long"
	case wire.ReasonUplinkLost:
		return "the network is gone"
	case wire.ReasonShutdown:
		return "the VPN service was stopped"
	default:
		return clean(given)
	}
}

// sentence makes one of a clause, which may begin with an app's id.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	if word, _, _ := strings.Cut(text, " "); !strings.Contains(word, ".") {
		_, first := utf8.DecodeRuneInString(text)
		text = strings.ToUpper(text[:first]) + text[first:]
	}
	return strings.TrimSuffix(text, ".") + "."
}
