package nm

import (
	"context"
	"sync"

	godbus "github.com/godbus/dbus/v5"
)

// EventKind is what an Event says.
type EventKind int

// Kinds of events.
const (
	Started EventKind = iota + 1 // NetworkManager came: read everything
	Stopped                      // it went, and all that was active with it

	ActiveList     // Paths are all activations now
	ActiveChanged  // that of Path is in State, for Reason
	VPNChanged     // that of Path is in VPN
	ProfileAdded   // Path is new, whoever made it
	ProfileDeleted // Path is no more

	// Retry says that what was refused may now be possible: there is another
	// base connection, or other rights.
	Retry
)

// Event is one thing that happened, in order.
type Event struct {
	Kind   EventKind
	Path   godbus.ObjectPath
	Paths  []godbus.ObjectPath
	State  ActiveState
	VPN    VPNState
	Reason Reason
}

// matches are the signals that are worth being woken up for. NetworkManager
// has many others: the strength of each network of the neighbourhood.
func matches() [][]godbus.MatchOption {
	from := func(more ...godbus.MatchOption) []godbus.MatchOption {
		return append([]godbus.MatchOption{godbus.WithMatchSender(BusName)}, more...)
	}
	return [][]godbus.MatchOption{
		{
			godbus.WithMatchSender("org.freedesktop.DBus"), godbus.WithMatchInterface("org.freedesktop.DBus"),
			godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, BusName),
		},
		from(godbus.WithMatchObjectPath(managerPath), godbus.WithMatchInterface("org.freedesktop.DBus.Properties")),
		from(godbus.WithMatchObjectPath(managerPath), godbus.WithMatchMember("CheckPermissions")),
		from(godbus.WithMatchObjectPath(settingsPath), godbus.WithMatchMember("NewConnection")),
		from(godbus.WithMatchObjectPath(settingsPath), godbus.WithMatchMember("ConnectionRemoved")),
		from(godbus.WithMatchInterface(activeInterface), godbus.WithMatchMember("StateChanged")),
		from(godbus.WithMatchInterface(vpnInterface), godbus.WithMatchMember("VpnStateChanged")),
	}
}

// manager is who NetworkManager is: its unique name, "" while it is away. Any
// user of the bus can send a signal like one of its own, also one that godbus
// cannot decode and that would end our connection. Methods may be called from
// any goroutine.
type manager struct {
	mu    sync.Mutex
	owner string
	seq   godbus.Sequence // of the message that said so
}

func (m *manager) name() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.owner
}

func (m *manager) is(sender string) bool { return sender != "" && sender == m.name() }

func (m *manager) became(owner string, seq godbus.Sequence) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seq < seq {
		m.owner, m.seq = owner, seq
	}
}

// handler passes signals on in order. godbus calls it where it reads, so who
// NetworkManager is, is known before the next message is looked at.
type handler struct {
	queue
	manager *manager
}

// queue is what godbus' sequential handler is.
type queue interface {
	godbus.SignalHandler
	godbus.SignalRegistrar
	godbus.Terminator
}

func (h handler) DeliverSignal(iface, name string, sig *godbus.Signal) {
	if now, ok := newOwner(sig); ok {
		h.manager.became(now.after, sig.Sequence)
	}
	h.queue.DeliverSignal(iface, name, sig)
}

// change is NetworkManager's unique name, before and after.
type change struct{ before, after string }

// newOwner reads what the bus says of it; other signals are none.
func newOwner(sig *godbus.Signal) (c change, ok bool) {
	var name string
	ok = sig.Sender == "org.freedesktop.DBus" && sig.Name == "org.freedesktop.DBus.NameOwnerChanged" &&
		godbus.Store(sig.Body, &name, &c.before, &c.after) == nil && name == BusName
	return c, ok
}

// Watch sends what happens to the channel until ctx is done or the bus is
// lost, and then closes it. It is called once.
func (c *Client) Watch(ctx context.Context, events chan<- Event) {
	defer close(events)
	for {
		var sig *godbus.Signal
		select {
		case s, ok := <-c.signals:
			if !ok {
				return
			}
			sig = s
		case <-ctx.Done():
			return
		}
		for _, event := range translate(sig) {
			select {
			case events <- event:
			case <-ctx.Done():
				return
			}
		}
	}
}

// translate says what a signal means to us; often that is nothing.
func translate(sig *godbus.Signal) []Event {
	if now, ok := newOwner(sig); ok {
		var events []Event
		if now.before != "" {
			events = append(events, Event{Kind: Stopped})
		}
		if now.after != "" {
			events = append(events, Event{Kind: Started})
		}
		return events
	}
	switch sig.Name {
	case "org.freedesktop.DBus.Properties.PropertiesChanged":
		return managerChanged(sig)
	case managerInterface + ".CheckPermissions":
		return []Event{{Kind: Retry}}
	case settingsInterface + ".NewConnection", settingsInterface + ".ConnectionRemoved":
		var path godbus.ObjectPath
		kind := ProfileDeleted
		if sig.Name == settingsInterface+".NewConnection" {
			kind = ProfileAdded
		}
		if godbus.Store(sig.Body, &path) == nil {
			return []Event{{Kind: kind, Path: path}}
		}
	case activeInterface + ".StateChanged":
		var state, reason uint32
		if godbus.Store(sig.Body, &state, &reason) == nil {
			return []Event{{Kind: ActiveChanged, Path: sig.Path, State: ActiveState(state), Reason: Reason(reason)}}
		}
	case vpnInterface + ".VpnStateChanged":
		var state, reason uint32
		if godbus.Store(sig.Body, &state, &reason) == nil {
			return []Event{{Kind: VPNChanged, Path: sig.Path, VPN: VPNState(state)}}
		}
	}
	return nil
}

func managerChanged(sig *godbus.Signal) []Event {
	var iface string
	var changed map[string]godbus.Variant
	var invalidated []string
	if godbus.Store(sig.Body, &iface, &changed, &invalidated) != nil || iface != managerInterface {
		return nil
	}
	var events []Event
	if list, ok := changed["ActiveConnections"]; ok {
		paths, _ := list.Value().([]godbus.ObjectPath)
		events = append(events, Event{Kind: ActiveList, Paths: paths})
	}
	_, primary := changed["PrimaryConnection"]
	_, state := changed["State"]
	if primary || state {
		events = append(events, Event{Kind: Retry})
	}
	return events
}
