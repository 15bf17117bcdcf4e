package system

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// walk goes through the states of a config at random, and knows what the state
// must be.
type walk struct {
	*vpn
	sender *sender
	sets   []parameterSet

	state    string
	session  godbus.ObjectPath
	notified bool

	covered bool // from the first parameters to the requested end
	clear   int  // packets in clear when that began
}

// steps are what a user and a provider may do, each in any state.
func (w *walk) steps() map[string]func() {
	return map[string]func(){
		"Connect":    w.connectOnce,
		"Disconnect": func() { w.end(wire.StateIdle, w.disconnect) },
		"update":     w.update,
		"bad update": func() {
			bad := badUpdates()[rand.IntN(len(badUpdates()))]
			set := fullTunnel()
			set[bad.key] = godbus.MakeVariant(bad.value)
			w.do("SetParameters", wire.ErrInvalidParameter, set)
		},
		"notify connected": func() {
			if w.do("NotifyConnectionStateChanged", "", wire.NotifyConnected, dict{}) {
				w.notified = true
				if w.state == wire.StateConfigured {
					w.state = wire.StateConnected
				}
			}
		},
		"notify failure": func() {
			if w.session != "" {
				w.end(wire.StateFailed, func() { w.notify(w.session, wire.NotifyFailure) })
			}
		},
		"the provider leaves": w.leave,
		"another channel": func() {
			if w.session != "" {
				w.open(w.session)
			}
		},
		"replaced": func() {
			w.end(wire.StateIdle, func() {
				w.ui.must(w.ui.manager("CreateConfig", w.app, "Other", dict{}))
				var other godbus.ObjectPath
				w.ui.must(w.ui.manager("FindConfig", w.app, "Other", dict{}), &other)
				w.ui.must(w.ui.on(other, "Connect", dict{}))
				w.ui.must(w.ui.on(other, "Remove", dict{}))
			})
		},
	}
}

// do calls a method of the session: it must answer so where there is one.
func (w *walk) do(member, want string, args ...any) bool {
	w.t.Helper()
	if w.session == "" {
		return false
	}
	if err := w.provider.on(w.session, member, args...).Err; errorName(err) != want {
		w.t.Fatalf("%s: %v, want %q", member, err, want)
	}
	return want == ""
}

func (w *walk) connectOnce() {
	w.t.Helper()
	session := w.connect()
	switch {
	case w.session == "":
		w.session, w.state, w.notified = session, wire.StateConnecting, false
		w.open(session)
	case session != w.session:
		w.t.Fatalf("Connect gave %s, and now %s", w.session, session)
	}
}

func (w *walk) update() {
	w.t.Helper()
	if !w.do("SetParameters", "", w.sets[rand.IntN(len(w.sets))].parameters) {
		return
	}
	w.state = wire.StateConfigured
	if w.notified {
		w.state = wire.StateConnected
	}
	if !w.covered {
		w.covered, w.clear = true, w.sender.inClear(w.t)
	}
}

// end asks for the end. Packets were covered until now.
func (w *walk) end(state string, ask func()) {
	w.t.Helper()
	w.check()
	had := w.session != ""
	ask()
	w.covered = false
	if had {
		w.session, w.state = "", state
	}
}

func (w *walk) leave() {
	w.t.Helper()
	w.end(wire.StateFailed, func() {
		w.provider.Close()
		if w.session != "" {
			w.ui.traceTo("config failed (provider gone)", w.config)
		}
	})
	w.provider = w.dial(w.t, harness.Alice)
	// The daemon may not have noticed that the other has left.
	w.provider.must(w.provider.manager("RegisterProvider", w.app, dict{"replace": godbus.MakeVariant(true)}))
}

// check holds the state, and what is in clear, against what must be.
func (w *walk) check() {
	w.t.Helper()
	w.requireState(w.state)
	if w.covered {
		if n := w.sender.inClear(w.t) - w.clear; n != 0 {
			w.t.Fatalf("%d packets in clear:\n%v", n, w.look(w.t).text)
		}
	}
	w.provider.trace()
	w.ui.trace()
}

// Many things that user and provider may do, in an order that chance makes,
// under traffic: the state is always what it must be, and no packet is in
// clear between the first parameters and the requested end.
func TestTransitions(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	w := &walk{vpn: v, sender: v.startSender(t), sets: parameterSets(), state: wire.StateIdle}
	w.sender.requireSeen(t)
	steps := w.steps()
	names := slices.Sorted(maps.Keys(steps))
	last, done := []string{}, map[string]int{}
	defer func() {
		if t.Failed() {
			t.Logf("the last steps: %q", last)
		}
	}()
	n := times(1000, 3000)
	for i := range n {
		progress(t, i, n)
		name := names[rand.IntN(len(names))]
		switch luck := rand.IntN(2) == 0; { // or little would happen
		case luck && w.session == "":
			name = "Connect"
		case luck:
			name = "update"
		}
		last = append(last[max(0, len(last)-10):], name)
		done[name+" when "+w.state]++
		steps[name]()
		w.check()
		if w.session == "" && rand.IntN(10) == 0 {
			w.requireClean(t)
		}
	}
	w.end(wire.StateIdle, w.disconnect)
	w.requireClean(t)
	w.sender.requireSeen(t)
	w.sender.requireRate(t)
	figure(t, "transitions", "%d, 0 in clear from the first parameters to the requested end", n)
	t.Logf("%v", done)
}
