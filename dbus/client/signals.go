package client

import (
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

const busName = "org.freedesktop.DBus"

// dispatcher is called by godbus in its reading goroutine, one signal after
// the other and before any later answer is handed out. So order needs no
// further care: when a call returns, every signal that came before its answer
// has been dispatched. Nothing in here may block or call the bus.
type dispatcher struct{ c *Client }

// DeliverSignal sorts the signals of the bus and the daemon. Anybody may send
// us a signal that looks like the daemon's: the sender, which the bus itself
// writes, decides.
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
	if sig.Sender == "" || sig.Sender != c.owner {
		return
	}
	switch sig.Name {
	case wire.ObjectManagerInterface + ".InterfacesAdded",
		wire.ObjectManagerInterface + ".InterfacesRemoved",
		wire.PropertiesInterface + ".PropertiesChanged":
		for w := range c.watchers {
			w.signals.push(sig)
		}
	case startProvider:
		c.agentSignal(sig)
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

// closeUnwanted closes descriptors that nobody asked for: any peer on the bus
// may attach some to a signal, and godbus would keep them open for ever.
func closeUnwanted(msg *godbus.Message) {
	if msg.Type != godbus.TypeMethodReply {
		closeFDs(msg.Body)
	}
}

func closeFDs(body []any) {
	for _, v := range body {
		switch v := v.(type) {
		case godbus.UnixFD:
			_ = unix.Close(int(v))
		case []godbus.UnixFD:
			for _, fd := range v {
				_ = unix.Close(int(fd))
			}
		case godbus.Variant:
			closeFDs([]any{v.Value()})
		case []any:
			closeFDs(v)
		case []godbus.Variant:
			for _, item := range v {
				closeFDs([]any{item.Value()})
			}
		case map[string]godbus.Variant:
			for _, item := range v {
				closeFDs([]any{item.Value()})
			}
		}
	}
}

func splitMember(method string) (iface, member string) {
	dot := strings.LastIndexByte(method, '.')
	return method[:dot], method[dot+1:]
}
