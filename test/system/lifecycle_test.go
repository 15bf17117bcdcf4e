package system

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// reach connects and goes on to the state.
func (v *vpn) reach(state string) godbus.ObjectPath {
	v.t.Helper()
	session := v.connect()
	switch state {
	case wire.StateConfigured, wire.StateConnected:
		v.configure(session, fullTunnel())
	case wire.StateReconnecting:
		v.configure(session, mobile())
	}
	if state == wire.StateConnected || state == wire.StateReconnecting {
		v.notify(session, wire.NotifyConnected)
	}
	if state == wire.StateReconnecting { // and the uplink is what it was
		harness.Eventually(v.t, harness.Timeout, "the daemon knows the uplink", func() error {
			if got := v.ui.property(session, "Uplink").(dict)["gateway"]; got.Value() != harness.RouterIPv4 {
				return fmt.Errorf("its gateway is %v", got)
			}
			return nil
		})
		for _, command := range []string{noIPv4, firstIPv4} {
			v.Host.IP(v.t, command)
			v.provider.traceTo("linkChanged: ", session)
		}
	}
	v.requireState(state)
	return session
}

// ending is one way in which a session ends.
type ending struct {
	name   string
	end    func(v *vpn, session godbus.ObjectPath)
	state  string // of the config afterwards; empty: it is gone
	reason string

	left    bool     // the provider is not there any more to be told
	told    []string // what it is told after the session is gone
	blocked bool     // the call that ends the session returns when nothing is left
}

// endings are all that need neither a timer nor the end of the daemon.
func endings() []ending {
	provider := func(member string, args ...any) func(*vpn, godbus.ObjectPath) {
		return func(v *vpn, session godbus.ObjectPath) {
			v.provider.must(v.provider.on(session, member, args...))
		}
	}
	config := func(member string) func(*vpn, godbus.ObjectPath) {
		return func(v *vpn, _ godbus.ObjectPath) { v.ui.must(v.ui.on(v.config, member, dict{})) }
	}
	return []ending{
		{
			name: "notify failure", end: provider("NotifyConnectionStateChanged", wire.NotifyFailure, dict{}),
			state: wire.StateFailed, reason: wire.ReasonProviderFailure, blocked: true,
		},
		{name: "Disconnect", end: config("Disconnect"), state: wire.StateIdle, blocked: true},
		{name: "Session.Disconnect by the provider", end: provider("Disconnect", dict{}), state: wire.StateIdle, blocked: true},
		{name: "Session.Disconnect by another program", end: func(v *vpn, session godbus.ObjectPath) {
			v.ui.must(v.ui.on(session, "Disconnect", dict{}))
		}, state: wire.StateIdle, blocked: true},
		{
			name: "Remove", end: config("Remove"),
			reason: wire.ReasonRemoved, told: []string{"ConfigRemoved", "-config"}, blocked: true,
		},
		{name: "DestroyConfig by the provider", end: func(v *vpn, _ godbus.ObjectPath) {
			v.provider.must(v.provider.manager("DestroyConfig", v.config, dict{}))
		}, reason: wire.ReasonRemoved, told: []string{"-config"}, blocked: true},
		{name: "DestroyConfig by another program", end: func(v *vpn, _ godbus.ObjectPath) {
			v.ui.must(v.ui.manager("DestroyConfig", v.config, dict{}))
		}, reason: wire.ReasonRemoved, told: []string{"ConfigRemoved", "-config"}, blocked: true},
		{name: "replaced", end: func(v *vpn, _ godbus.ObjectPath) {
			other := v.party(v.t, harness.Alice, v.app+".Other")
			other.connect()
			other.disconnect()
		}, state: wire.StateIdle, reason: wire.ReasonReplaced, blocked: true},
		{
			name: "the provider leaves the bus", end: func(v *vpn, _ godbus.ObjectPath) { v.provider.Close() },
			state: wire.StateFailed, reason: wire.ReasonProviderGone, left: true,
		},
		{name: "UnregisterProvider", end: func(v *vpn, _ godbus.ObjectPath) {
			v.provider.must(v.provider.manager("UnregisterProvider", v.app, dict{}))
		}, state: wire.StateFailed, reason: wire.ReasonProviderGone, blocked: true},
		{name: "replace by another connection", end: func(v *vpn, _ godbus.ObjectPath) {
			v.ui.refused(v.ui.manager("RegisterProvider", v.app, dict{}), wire.ErrAlreadyExists)
			v.ui.must(v.ui.manager("RegisterProvider", v.app, dict{"replace": godbus.MakeVariant(true)}))
		}, state: wire.StateFailed, reason: wire.ReasonProviderGone, blocked: true},
		{name: "ForgetProvider", end: func(v *vpn, _ godbus.ObjectPath) {
			v.ui.must(v.ui.manager("ForgetProvider", v.app, dict{}))
		}, reason: wire.ReasonRemoved, told: []string{"ConfigRemoved", "-config"}, blocked: true},
	}
}

// Each way to end a session, from each state that has one: who is told what,
// in which order, what the state is then, and that nothing is left.
func TestEndings(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for _, state := range []string{wire.StateConnecting, wire.StateConfigured, wire.StateConnected, wire.StateReconnecting} {
		for i, e := range endings() {
			t.Run(state+", "+e.name, func(t *testing.T) {
				// The provider of the last one may still be on its way out.
				m.party(t, harness.Alice, fmt.Sprintf("com.example.%s%d", state, i)).testEnding(state, e)
			})
		}
	}
	m.Host.RequireSnapshot(t, m.before, resolvConf)
}

func (v *vpn) testEnding(state string, e ending) {
	t := v.t
	t.Helper()
	defer func() { v.ui.manager("ForgetProvider", v.app, dict{}) }() // for the next ending
	session := v.reach(state)
	if state == wire.StateConnecting {
		v.requirePresence(t, connecting())
	} else {
		v.requirePresence(t, configured())
	}
	v.provider.trace()
	v.ui.trace()

	e.end(v, session)
	if e.blocked {
		if now := v.look(t); now.rules != 0 || now.routes || now.servers {
			t.Errorf("the call came back, and there is %+v", now.presence)
		}
	}
	final := "config " + e.state
	if e.reason != "" {
		final += " (" + e.reason + ")"
	}
	if e.state == "" {
		final = "config " + wire.StateIdle + " (" + e.reason + ")"
	}
	seen := []string{"config " + wire.StateDisconnecting, final, "-session"}
	told := []string{seen[0], "disconnected: " + e.reason, final, "-session"}
	last := "-session"
	if e.state == "" {
		seen, last = append(seen, "-config"), "-config"
	}
	requireTrace(t, "the user interface", v.ui.traceTo(last, v.config, session), seen...)
	if !e.left {
		told = append(told, e.told...)
		requireTrace(t, "the provider", v.provider.traceTo(told[len(told)-1], v.config, session), told...)
	}
	v.requireClean(t)
	v.requireEnded(session, e)
}

// requireEnded reads what is left for those who ask later.
func (v *vpn) requireEnded(session godbus.ObjectPath, e ending) {
	v.t.Helper()
	v.ui.refused(v.ui.on(session, "Disconnect", dict{}), wire.ErrNotFound)
	if e.state == "" {
		v.ui.refused(v.ui.on(v.config, "Connect", dict{}), wire.ErrNotFound)
		return
	}
	got := v.ui.properties(v.config)
	if got["State"].Value() != e.state || got["FailureReason"].Value() != e.reason || got["Session"].Value() != godbus.ObjectPath(wire.NoPath) {
		v.t.Errorf("the config is %v, want %s with reason %q and no session", got, e.state, e.reason)
	}
}

// The way to a connected session, step by step: what is told, what the state
// is and what the kernel has; and the same again from each state in which a
// session may begin.
func TestWayUp(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.provider.trace()
	v.ui.trace()
	for _, round := range []string{wire.StateIdle, wire.StateFailed} {
		v.requirePresence(t, absent())
		session := v.connect()
		requireTrace(t, "the user interface, before the answer", v.ui.arrived(v.config, session), "+session", "config connecting")
		requireTrace(t, "the provider", v.provider.trace(v.config, session), "+session", "config connecting", "connected")
		v.requirePresence(t, connecting())
		if again := v.connect(); again != session {
			t.Errorf("Connect gave %s, and again %s", session, again)
		}
		v.provider.refused(v.provider.on(session, "SendPacket", []byte{0x45}), wire.ErrWrongState)

		v.configure(session, fullTunnel())
		v.requirePresence(t, configured())
		v.notify(session, wire.NotifyConnected)
		v.notify(session, wire.NotifyConnected) // success, and nothing new
		v.configure(session, fullTunnel())      // goes on
		want := []string{"config configured", "config connected"}
		requireTrace(t, "the provider", v.provider.trace(v.config, session), want...)
		requireTrace(t, "the user interface", v.ui.trace(v.config, session), want...)
		v.requireState(wire.StateConnected)
		if since := v.ui.property(v.config, "LastConnected").(uint64); since == 0 {
			t.Error("LastConnected is never")
		}

		v.provider.refused(v.provider.on(session, "NotifyConnectionStateChanged", "maybe", dict{}), wire.ErrInvalidParameter, "maybe")
		v.ui.refused(v.ui.on(session, "SetParameters", fullTunnel()), wire.ErrNotOwner)
		if round == wire.StateIdle {
			v.notify(session, wire.NotifyFailure)
			v.requireState(wire.StateFailed)
		} else {
			v.ui.trace()
			v.disconnect()
			requireTrace(t, "the user interface, before the answer", v.ui.arrived(v.config, session), "config disconnecting", "config idle", "-session")
			v.requireState(wire.StateIdle)
		}
		v.provider.trace()
		v.ui.trace()
		v.requireClean(t)
	}
}

// A provider that says early that it is connected: remembered, so that the
// parameters lead straight to connected.
func TestNotifiedEarly(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session := v.connect()
	v.notify(session, wire.NotifyConnected)
	v.requireState(wire.StateConnecting)
	v.requirePresence(t, connecting())
	v.provider.trace()
	v.provider.refused(v.provider.on(session, "SetParameters", dict{}), wire.ErrInvalidParameter, "address")
	v.requireState(wire.StateConnecting)
	v.configure(session, fullTunnel())
	requireTrace(t, "the provider", v.provider.trace(v.config, session), "config connected")
	v.requirePresence(t, configured())
}

// Without a TUN there is no session, and the reason is told to who asked.
func TestNoTUN(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.connect()
	v.disconnect()
	fds := v.descriptors(t)
	v.provider.trace()
	v.ui.trace()
	mount := func(undo bool) {
		t.Helper()
		err := v.Host.Do(func() error {
			if undo {
				return unix.Unmount("/dev/net", unix.MNT_DETACH)
			}
			return unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "")
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	mount(false)
	for range 20 {
		v.ui.refused(v.ui.on(v.config, "Connect", dict{}), wire.ErrFailed, "tunnel")
		v.requireState(wire.StateFailed)
	}
	if reason := v.ui.property(v.config, "FailureReason").(string); !strings.HasPrefix(reason, wire.ReasonInternalPrefix) {
		t.Errorf("FailureReason %q", reason)
	}
	for _, line := range v.provider.trace(v.config) {
		if !strings.HasPrefix(line, "config failed (internal error: ") {
			t.Errorf("the provider got %q", line)
		}
	}
	v.requireClean(t)
	v.requireDescriptors(t, fds)
	mount(true)
	v.establish()
	if reason := v.ui.property(v.config, "FailureReason"); reason != "" {
		t.Errorf("connected, with FailureReason %q", reason)
	}
}

// A name that another program has is left to it.
func TestInterfaceNameTaken(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.Host.IP(t, "link add vpn0 type bridge")
	session, _ := v.establish()
	if link := v.link(session); link == "vpn0" || !strings.HasPrefix(link, "vpn") {
		t.Errorf("the interface is %q", link)
	}
	v.ping(t, "1", includedIPv4)
	v.disconnect()
	v.Host.IP(t, "link del vpn0")
	v.requireClean(t)
}

// The timer of connecting ends a session that gets no parameters, whatever
// else its provider does; parameters stop it.
func TestTimer(t *testing.T) {
	t.Parallel()
	const limit = 3 * time.Second // in which parameters come, however busy the machine
	v := newVPN(t, "--connect-timeout", limit.String())
	for name, do := range map[string]func(godbus.ObjectPath){
		"nothing":           func(godbus.ObjectPath) {},
		"early notify":      func(s godbus.ObjectPath) { v.notify(s, wire.NotifyConnected) },
		"channel":           func(s godbus.ObjectPath) { v.openChannel(s) },
		"parameters, wrong": func(s godbus.ObjectPath) { v.provider.on(s, "SetParameters", dict{"mtu": godbus.MakeVariant("1")}) },
	} {
		v.provider.trace()
		v.ui.trace()
		begun := time.Now()
		session := v.connect()
		do(session)
		seen := v.ui.traceTo("-session", v.config, session)
		if took := time.Since(begun); took < limit {
			t.Errorf("%s: the timer ended it after %v", name, took)
		}
		failed := "config failed (connection timed out)"
		requireTrace(t, name+": the user interface", seen,
			"+session", "config connecting", "config disconnecting", failed, "-session")
		requireTrace(t, name+": the provider", v.provider.traceTo("-session", v.config, session),
			"+session", "config connecting", "connected", "config disconnecting",
			"error: connection timed out", "disconnected: connection timed out", failed, "-session")
		v.requireClean(t)
	}

	session := v.reach(wire.StateConfigured)
	serve(t, v.openChannel(session))
	for begun := time.Now(); time.Since(begun) < 2*limit; {
		v.ping(t, "3", includedIPv4)
	}
	v.requireState(wire.StateConfigured)
}

// slow is a set of parameters that takes a while to undo.
func slow() dict {
	p := fullTunnel()
	blocks := []string{"0.0.0.0/0", "::/0"}
	throws := []string{}
	for i := range 3000 {
		throws = append(throws, fmt.Sprintf("10.128.%d.%d/32", i>>7, i<<1&255))
		blocks = append(blocks, fmt.Sprintf("172.16.%d.%d/32", i>>7, i<<1&255))
	}
	p["inclusionList"] = godbus.MakeVariant(blocks)
	p["exclusionList"] = godbus.MakeVariant(throws)
	return p
}

// While a session ends, its provider can do nothing with it any more, and who
// connects meanwhile waits for the end and gets another.
func TestConnectWhileDisconnecting(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	other := v.dial(t, harness.Alice)
	inTime := 0
	// At least three times, and more where this test got the processor too late.
	for round := 0; round < 3 || inTime == 0 && round < 20; round++ {
		session := v.connect()
		v.configure(session, slow())
		v.provider.trace()
		ended := v.ui.begin(v.config, "Disconnect", dict{})
		v.provider.traceTo("disconnected: ", session)
		late := []<-chan *godbus.Call{
			v.provider.begin(session, "SetParameters", fullTunnel()),
			v.provider.begin(session, "SendPacket", []byte{0x45}),
			v.provider.begin(session, "OpenPacketChannel", dict{}),
			v.provider.begin(session, "NotifyConnectionStateChanged", wire.NotifyConnected, dict{}),
			v.provider.begin(session, "Acknowledge", "disconnected", dict{}),
		}
		var next godbus.ObjectPath
		other.must(other.on(v.config, "Connect", dict{}), &next)
		v.ui.must(<-ended)
		for _, done := range late {
			call := <-done
			switch errorName(call.Err) {
			case wire.ErrWrongState:
				inTime++
			case wire.ErrNotFound: // it was quick
			default:
				t.Errorf("after disconnected, %s: %v", call.Method, call.Err)
			}
		}
		if next == session {
			t.Errorf("Connect gave the session that was ending")
		}
		requireTrace(t, "the provider", v.provider.traceTo("connected", v.config, session, next),
			"config idle", "-session", "+session", "config connecting", "connected")
		v.configure(next, fullTunnel())
		v.requirePresence(t, configured())
		v.disconnect()
		v.requireClean(t)
	}
	if inTime == 0 {
		t.Error("no call came while the session was ending: this tests nothing")
	}
}

// A client that ends its channel has 5 s to open another. Without one the
// session fails, in each state; with one, and where packets come by signal,
// it goes on. (The cases wait together.)
func TestChannelEnds(t *testing.T) {
	t.Parallel()
	const limit = 5 * time.Second
	type waiting struct {
		*vpn
		name    string
		session godbus.ObjectPath
		begun   time.Time
	}
	begin := func(name, state string, options dict, end func(*vpn, *os.File, godbus.ObjectPath)) waiting {
		v := newMachine(t).party(t, harness.Alice, app)
		v.provider.must(v.provider.manager("RegisterProvider", app, options))
		session := v.reach(state)
		channel := v.openChannel(session)
		v.provider.trace()
		w := waiting{v, name, session, time.Now()}
		end(v, channel, session)
		return w
	}
	closed := func(_ *vpn, channel *os.File, _ godbus.ObjectPath) { channel.Close() }
	shut := func(_ *vpn, channel *os.File, _ godbus.ObjectPath) {
		if err := unix.Shutdown(int(channel.Fd()), unix.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
	}
	empty := func(_ *vpn, channel *os.File, _ godbus.ObjectPath) {
		if err := unix.Send(int(channel.Fd()), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	fail := []waiting{
		begin("closed", wire.StateConnecting, dict{}, closed),
		begin("shut down", wire.StateConfigured, dict{}, shut),
		begin("an empty message", wire.StateConnected, dict{}, empty),
		begin("closed, while it reconnects", wire.StateReconnecting, dict{}, closed),
	}
	live := []waiting{
		begin("another channel in time", wire.StateConnected, dict{}, func(v *vpn, channel *os.File, session godbus.ObjectPath) {
			channel.Close()
			v.open(session)
		}),
		begin("packets by signal", wire.StateConnected, dict{"packetSignals": godbus.MakeVariant(true)}, closed),
	}
	for _, w := range fail {
		requireTrace(t, w.name, w.provider.traceTo("-session", w.config, w.session),
			"config disconnecting", "disconnected: channel closed", "config failed (channel closed)", "-session")
		if took := time.Since(w.begun); took < limit {
			t.Errorf("%s: the session ended after %v", w.name, took)
		}
		w.requireClean(t)
	}
	for _, w := range live {
		for time.Since(w.begun) < limit+time.Second {
			w.requireState(wire.StateConnected)
		}
		w.requirePresence(t, configured())
	}
	live[0].ping(t, "1", includedIPv4)
}
