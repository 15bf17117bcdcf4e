package nm

import (
	"context"

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

// Watch sends what happens to the channel until ctx is done or the bus is
// lost, and then closes it. It is called once.
//
// That a signal is NetworkManager's is the bus' word: only what matches is
// broadcast to us, and a signal that somebody sends to us alone is told by its
// sender.
func (c *Client) Watch(ctx context.Context, events chan<- Event) {
	defer close(events)
	owner := ""
	_ = c.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, BusName).Store(&owner)
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
		if sig.Sender == "org.freedesktop.DBus" && sig.Name == "org.freedesktop.DBus.NameOwnerChanged" {
			var name, before string
			if godbus.Store(sig.Body, &name, &before, &owner) != nil || name != BusName {
				continue
			}
		} else if sig.Sender != owner {
			continue
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
	switch sig.Name {
	case "org.freedesktop.DBus.NameOwnerChanged":
		var events []Event
		if sig.Body[1] != "" {
			events = append(events, Event{Kind: Stopped})
		}
		if sig.Body[2] != "" {
			events = append(events, Event{Kind: Started})
		}
		return events
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
