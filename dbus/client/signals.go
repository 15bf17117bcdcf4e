package client

import (
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

const busName = "org.freedesktop.DBus"

// dispatcher is called by godbus in its reading goroutine, one signal after
// the other and before any later answer is handed out. So order needs no
// further care: when a call returns, every signal that came before its answer
// has been dispatched. Nothing in here may block or call the bus.
type dispatcher struct{ c *Client }

// isDaemon says whether that is the sender of the daemon's signals. Anybody may
// send us one that looks like the daemon's: the sender, which the bus itself
// writes, decides. A daemon that leaves gives up its name first and then sends
// what its last calls caused; unique names are not used twice, so it is believed
// until there is a new one.
func (c *Client) isDaemon(sender string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return sender != "" && (sender == c.owner || c.owner == "" && sender == c.leaving)
}

// DeliverSignal sorts the signals of the bus and the daemon; there are no
// others.
func (d dispatcher) DeliverSignal(_, _ string, sig *godbus.Signal) {
	c := d.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost {
		return
	}
	c.lastSeq = sig.Sequence
	if sig.Sender == busName {
		c.ownerChanged(sig)
		return
	}
	switch sig.Name {
	case wire.ObjectManagerInterface + ".InterfacesAdded",
		wire.ObjectManagerInterface + ".InterfacesRemoved",
		wire.PropertiesInterface + ".PropertiesChanged":
		if c.owner == "" {
			return // they were told Stopped, and read all from the next daemon
		}
		for w := range c.watchers {
			w.signals.push(sig)
		}
	case startProvider:
		if c.owner != "" { // else nobody waits for the app any more
			c.agentSignal(sig)
		}
	default:
		if c.provider != nil {
			c.providerSignal(sig)
		}
	}
}

// Terminate is called when the connection ends, whoever ended it.
func (d dispatcher) Terminate() {
	c := d.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = true
	c.endProvider(ErrClosed)
	for w := range c.watchers {
		w.signals.finish()
	}
	for a := range c.agents {
		a.signals.finish()
	}
}

// lastSignal is the place of the last signal in the stream. What came up to
// there is in whatever is read from now on. What comes before the answer may
// or may not be: the daemon may have looked before it sent the signal.
func (c *Client) lastSignal() godbus.Sequence {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastSeq
}

func (c *Client) ownerChanged(sig *godbus.Signal) {
	var name, before, owner string
	if sig.Name != busName+".NameOwnerChanged" || godbus.Store(sig.Body, &name, &before, &owner) != nil || name != wire.BusName {
		return
	}
	c.owner, c.ownerSeq = owner, sig.Sequence
	if c.leaving = ""; owner == "" {
		c.leaving = before
	}
	for w := range c.watchers {
		w.signals.push(sig)
	}
	if owner != "" {
		c.agentSignal(sig)
	}
	if c.provider != nil {
		c.provider.ownerChanged()
	}
}

func splitMember(method string) (iface, member string) {
	dot := strings.LastIndexByte(method, '.')
	return method[:dot], method[dot+1:]
}
