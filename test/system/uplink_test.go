package system

import (
	"fmt"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// settled is longer than changes of the network are gathered, and what follows
// of them takes.
const settled = 900 * time.Millisecond

// unready is a little less than a provider that is not ready holds up sleep.
const unready = 2900 * time.Millisecond

// Commands on the host that change its uplink.
const (
	firstIPv4    = "route replace default via " + harness.RouterIPv4 + " dev h0"
	firstIPv6    = "route replace default via " + harness.RouterIPv6 + " dev h0"
	secondIPv4   = "route replace default via " + harness.SecondRouterIPv4 + " dev h1"
	secondIPv6   = "route replace default via " + harness.SecondRouterIPv6 + " dev h1"
	anotherGW    = "10.77.0.9" // of the first uplink
	anotherIPv4  = "route replace default via " + anotherGW + " dev h0"
	noIPv4       = "route del default"
	noIPv6       = "route del ::/0"
	reconnecting = "config " + wire.StateReconnecting
)

// roamer is a host with two uplinks, a logind, and an app whose session is to
// outlive what becomes of them.
type roamer struct {
	*vpn
	logind *harness.Logind
	clear  []*harness.Sniffer
}

func newRoamer(t testing.TB, args ...string) *roamer {
	t.Helper()
	m := newHost(t)
	m.SecondUplink(t)
	m.Router.IP(t, "addr add "+anotherGW+"/24 dev r0")
	m.before, m.quick = m.Host.Snapshot(t, resolvConf), m.look(t).text
	m.startBus(t, harness.LogindPolicy(t))
	r := &roamer{logind: harness.StartLogind(t, m.bus)}
	m.daemon = harness.NewDaemon(t, m.Host, m.bus, harness.DaemonOptions{Args: args})
	m.startAgain(t)
	r.clear = []*harness.Sniffer{m.Clear(t), m.Router.Sniff(t, "r2")}
	r.vpn = m.party(t, harness.Alice, app)
	r.awaitUplink(harness.RouterIPv4) // it is not known at once
	r.disconnect()
	return r
}

// mobile are the parameters of a session that is to outlive changes.
func mobile() dict {
	p := fullTunnel()
	p["reconnect"] = godbus.MakeVariant(true)
	return p
}

// reachMobile is reach, with parameters that are.
func (r *roamer) reachMobile(state string) godbus.ObjectPath {
	r.t.Helper()
	session := r.connect()
	r.configure(session, mobile())
	if state == wire.StateConnected {
		r.notify(session, wire.NotifyConnected)
	}
	r.requireState(state)
	r.settle()
	return session
}

// settle waits until earlier changes are done with, and forgets what was told
// of them.
func (r *roamer) settle() {
	r.t.Helper()
	time.Sleep(settled)
	r.provider.trace()
	r.ui.trace()
}

// told waits until the provider was told these, and nothing else.
func (r *roamer) told(session godbus.ObjectPath, want ...string) {
	r.t.Helper()
	r.provider.awaitTrace(want, r.config, session)
}

// untold says that for as long as a change may take the provider is told
// nothing.
func (r *roamer) untold(session godbus.ObjectPath) {
	r.t.Helper()
	time.Sleep(settled)
	requireTrace(r.t, "the provider", r.provider.trace(r.config, session))
}

// again sets the parameters once more, as a provider does that has reached its
// server over the new network. That alone ends the reconnecting.
func (r *roamer) again(session godbus.ObjectPath) {
	r.t.Helper()
	r.requireState(wire.StateReconnecting)
	r.requirePresence(r.t, configured())
	r.configure(session, mobile())
	r.told(session, "config connected")
}

// ip runs commands of ip on the host, one at once after the other: in one
// process, as what comes together is told together.
func (r *roamer) ip(commands ...string) {
	r.t.Helper()
	r.Host.IP(r.t, commands...)
}

// awaitUplink waits until the daemon knows the uplink, "" for none. It says so in
// a session alone, and one that meets a change ends.
func (r *roamer) awaitUplink(gateway string) {
	r.t.Helper()
	harness.Eventually(r.t, harness.Timeout, "the daemon knows the uplink", func() error {
		var session godbus.ObjectPath
		var uplink godbus.Variant
		if err := r.ui.on(r.config, "Connect", dict{}).Store(&session); err != nil {
			return err
		}
		if err := r.ui.call(session, wire.PropertiesInterface+".Get", wire.SessionInterface, "Uplink").Store(&uplink); err != nil {
			return err
		}
		if got, _ := uplink.Value().(dict)["gateway"].Value().(string); got != gateway {
			return fmt.Errorf("its gateway is %q, want %q", got, gateway)
		}
		return nil
	})
	r.disconnect()
}

// pull takes the cable out at the other end, and plug puts it in.
func (r *roamer) pull() { r.Router.IP(r.t, "link set r0 down") }

func (r *roamer) plug() {
	r.Router.IP(r.t, "link set r0 up", "addr add "+harness.RouterIPv6+"/64 dev r0 nodad")
}

// inClear are the packets of a sender that left the host outside the tunnel, by
// either uplink.
func (r *roamer) inClear() (n int) {
	for _, s := range r.clear {
		n += s.Count(r.t, func(p harness.Packet) bool { return !p.Sent && p.DstPort == senderPort })
	}
	return n
}

// With reconnect a session outlives all that becomes of the uplink. Each change
// is told, once, by the message that belongs to it, in order; parameters alone
// end the reconnecting; there is no timer without an uplink; and not one packet
// is sent in clear.
func TestUplinkMessages(t *testing.T) {
	t.Parallel()
	const limit = 8 * time.Second
	r := newRoamer(t, "--connect-timeout", limit.String())
	session := r.reachMobile(wire.StateConnected)
	serve(t, r.openChannel(session))
	s := r.startSender(t)
	s.awaitMore(t, 100)

	r.pull()
	r.told(session, reconnecting, "linkDown: ")
	r.requirePresence(t, configured())
	if up := r.ui.property(session, "Uplink").(dict); len(up) != 0 {
		t.Errorf("without a cable the uplink is %v", up)
	}
	r.ip(noIPv4, noIPv6)
	r.untold(session) // it is as lost as before
	time.Sleep(limit) // and there is no timer
	r.requireState(wire.StateReconnecting)
	r.plug()
	r.untold(session) // a cable alone is no way out
	r.ip(firstIPv4, firstIPv6)
	r.told(session, "linkUp: ")
	r.again(session)

	for _, change := range []struct {
		name     string
		commands []string
		family   string
	}{
		{"another uplink", []string{secondIPv4, secondIPv6}, "ipv4"},
		{"the first again", []string{firstIPv4, firstIPv6}, "ipv4"},
		{"another gateway", []string{anotherIPv4}, "ipv4"},
		{"IPv6 alone", []string{noIPv4}, "ipv6"},
		{"another one, IPv6 alone", []string{secondIPv6}, "ipv6"},
		{"IPv4 again, elsewhere", []string{firstIPv4}, "ipv4"},
	} {
		r.ip(change.commands...)
		r.told(session, reconnecting, "linkChanged: ")
		if family := r.ui.property(session, "Uplink").(dict)["family"].Value(); family != change.family {
			t.Errorf("%s: the family is %v", change.name, family)
		}
		r.again(session)
	}
	r.ip(firstIPv6)

	// It is lost, and what comes back is another: that is linkUp, once.
	r.ip(noIPv4, noIPv6)
	r.told(session, reconnecting, "linkDown: ")
	r.ip(secondIPv4)
	r.told(session, "linkUp: ")
	r.ip(firstIPv4, firstIPv6)
	r.told(session, "linkChanged: ")
	r.again(session)
	r.settle()

	// What is no change, and what is over before it is looked at.
	for name, commands := range map[string][]string{
		"a worse route":  {"route add default via " + harness.SecondRouterIPv4 + " dev h1 metric 500", "route del default metric 500"},
		"gone and back":  {noIPv4, noIPv6, firstIPv4, firstIPv6},
		"there and back": {secondIPv4, secondIPv6, firstIPv4, firstIPv6},
		"another metric": {"route add default via " + harness.RouterIPv4 + " dev h0 metric 7", "route del default metric 0", firstIPv4, "route del default metric 7"},
	} {
		r.ip(commands...)
		time.Sleep(settled)
		requireTrace(t, name, r.provider.trace(r.config, session))
		r.requireState(wire.StateConnected)
	}
	// Many changes in one moment are told as one.
	r.ip(noIPv4, secondIPv4, anotherIPv4, noIPv4, secondIPv4, anotherIPv4)
	r.told(session, reconnecting, "linkChanged: ")
	r.untold(session)
	r.again(session)
	r.ip(firstIPv4)
	r.told(session, reconnecting, "linkChanged: ")
	r.again(session)

	s.requireRate(t)
	if n := r.inClear(); n != 0 {
		t.Errorf("%d packets in clear:\n%v\n%v", n, r.clear[0], r.clear[1])
	}
	r.disconnect()
	r.requireClean(t)
}

// The timer of reconnecting begins anew with each message but linkDown, and
// ends the session; parameters with errors, and what else the provider says, do
// not stop it.
func TestUplinkTimer(t *testing.T) {
	t.Parallel()
	const limit = 6 * time.Second
	r := newRoamer(t, "--connect-timeout", limit.String())
	session := r.reachMobile(wire.StateConnected)
	r.ip(anotherIPv4)
	r.told(session, reconnecting, "linkChanged: ")
	time.Sleep(limit / 2)
	begun := time.Now()
	r.ip(firstIPv4)
	r.told(session, "linkChanged: ")
	r.provider.refused(r.provider.on(session, "SetParameters", dict{"mtu": godbus.MakeVariant("1"), "reconnect": godbus.MakeVariant(false)}),
		wire.ErrInvalidParameter, "mtu")
	if !r.ui.property(session, "Reconnect").(bool) {
		t.Error("parameters with errors changed reconnect")
	}
	r.notify(session, wire.NotifyConnected)
	r.requireState(wire.StateReconnecting)
	r.told(session, "config disconnecting", "error: connection timed out", "disconnected: connection timed out",
		"config failed (connection timed out)", "-session")
	if took := time.Since(begun); took < limit || took > 5*limit {
		t.Errorf("it failed after %v, want %v", took, limit)
	}
	r.requireClean(t)
}

// What the provider said before and during the reconnecting counts after it.
func TestUplinkRemembered(t *testing.T) {
	t.Parallel()
	r := newRoamer(t)
	session := r.reachMobile(wire.StateConfigured)
	r.ip(anotherIPv4)
	r.told(session, reconnecting, "linkChanged: ")
	r.configure(session, mobile())
	r.told(session, "config configured") // it had not said that it is connected
	r.ip(firstIPv4)
	r.told(session, reconnecting, "linkChanged: ")
	r.notify(session, wire.NotifyConnected)
	r.untold(session) // remembered
	r.again(session)
	r.disconnect()
	r.requireClean(t)
}

// Without reconnect, which is so before the first parameters, the loss of the
// uplink and its change end the session, in each state.
func TestUplinkWithoutReconnect(t *testing.T) {
	t.Parallel()
	r := newRoamer(t)
	for name, change := range map[string]struct{ do, undo func() }{
		"the cable is out": {r.pull, r.plug},
		"lost":             {func() { r.ip(noIPv4, noIPv6) }, func() {}},
		"replaced":         {func() { r.ip(secondIPv4, secondIPv6) }, func() {}},
		"another gateway":  {func() { r.ip(anotherIPv4) }, func() {}},
		"IPv6 alone":       {func() { r.ip(noIPv4) }, func() {}},
	} {
		for _, state := range []string{wire.StateConnecting, wire.StateConfigured, wire.StateConnected} {
			session := r.reach(state)
			r.provider.trace()
			r.ui.trace()
			change.do()
			const failed = "config failed (underlying network disconnected)"
			r.told(session, "config disconnecting", "disconnected: underlying network disconnected", failed, "-session")
			requireTrace(t, name+", "+state+": the user interface", r.ui.traceTo("-session", r.config, session), "config disconnecting", failed, "-session")
			change.undo()
			r.ip(firstIPv4, firstIPv6)
			r.requireClean(t)
			r.awaitUplink(harness.RouterIPv4)
		}
	}
}

// An uplink that appears where none was is no news: there was no linkDown.
func TestUplinkAppears(t *testing.T) {
	t.Parallel()
	r := newRoamer(t)
	for _, state := range []string{wire.StateConnecting, wire.StateConfigured, wire.StateConnected} {
		r.ip(noIPv4, noIPv6)
		r.awaitUplink("")
		var session godbus.ObjectPath
		if state == wire.StateConnecting {
			session = r.connect()
		} else {
			session = r.reachMobile(state)
		}
		r.settle()
		r.ip(firstIPv4, firstIPv6)
		harness.Eventually(t, harness.Timeout, state+": the session's uplink", func() error {
			if gateway := r.ui.property(session, "Uplink").(dict)["gateway"].Value(); gateway != harness.RouterIPv4 {
				return fmt.Errorf("the gateway is %v", gateway)
			}
			return nil
		})
		r.untold(session)
		r.requireState(state)
		r.configure(session, mobile())
		r.disconnect()
		r.requireClean(t)
	}
}

// The machine sleeps when the provider is ready or has had 3 s, is told of it
// before, and reconnects after; a lock is held all the time but while it sleeps.
func TestSleepAndWake(t *testing.T) {
	t.Parallel()
	const limit = 12 * time.Second
	r := newRoamer(t, "--connect-timeout", limit.String())
	for _, state := range []string{wire.StateConfigured, wire.StateConnected} {
		session := r.reachMobile(state)
		asleep := r.logind.Sleep(t)
		begun := time.Now()
		r.told(session, "suspend: ")
		r.requireState(state)
		r.provider.must(r.provider.on(session, "Acknowledge", "resume", dict{})) // not what is waited for
		const ready = 300 * time.Millisecond
		time.Sleep(ready)
		r.provider.must(r.provider.on(session, "Acknowledge", "suspend", dict{}))
		acknowledged := time.Since(begun)
		// Where there is hardly time to answer, that it slept says nothing.
		if took := <-asleep; took < ready || took > unready && acknowledged < unready-time.Second {
			t.Errorf("%s: it slept after %v, the provider was ready after %v", state, took, acknowledged)
		}
		r.untold(session)
		r.logind.Wake(t)
		r.told(session, reconnecting, "resume: ")
		r.requirePresence(t, configured())

		// Once more while it is reconnecting, and without an answer.
		asleep = r.logind.Sleep(t)
		r.told(session, "suspend: ")
		if took := <-asleep; took < unready || took > 3*unready {
			t.Errorf("%s: without an answer it slept after %v, want 3 s", state, took)
		}
		// The timer of the first resume has ended the session meanwhile.
		r.told(session, "config disconnecting", "error: connection timed out", "disconnected: connection timed out",
			"config failed (connection timed out)", "-session")
		r.logind.Wake(t)
		r.requireClean(t)
	}
	session := r.reachMobile(wire.StateConnected)
	s := r.startSender(t)
	asleep := r.logind.Sleep(t)
	r.told(session, "suspend: ")
	r.provider.must(r.provider.on(session, "Acknowledge", "suspend", dict{}))
	<-asleep
	r.logind.Wake(t)
	r.told(session, reconnecting, "resume: ")
	s.awaitMore(t, 500)
	r.again(session)
	s.requireRate(t)
	if n := r.inClear(); n != 0 {
		t.Errorf("%d packets in clear", n)
	}
	r.disconnect()
	r.requireClean(t)
}

// A session without reconnect is told nothing of sleep, and does not hold it up;
// nor does a host without a session.
func TestSleepWithoutReconnect(t *testing.T) {
	t.Parallel()
	r := newRoamer(t)
	sleep := func(what string) {
		t.Helper()
		if took := <-r.logind.Sleep(t); took > unready {
			t.Errorf("%s: it slept after %v", what, took)
		}
		r.logind.Wake(t)
	}
	sleep("no session")
	for _, state := range []string{wire.StateConnecting, wire.StateConfigured, wire.StateConnected} {
		session := r.reach(state)
		r.settle()
		sleep(state)
		r.untold(session)
		r.requireState(state)
		r.disconnect()
		r.requireClean(t)
	}
}

// What another program deletes of ours is back within a second, in reconnecting
// as in every other state, and in a lockdown nothing is in clear meanwhile.
func TestForeignDeletion(t *testing.T) {
	t.Parallel()
	r := newRoamer(t)
	session := r.reachMobile(wire.StateConnected)
	r.lockdown(true)
	r.ip(anotherIPv4)
	r.told(session, reconnecting, "linkChanged: ")
	r.settle()
	whole := r.look(t).text
	s := r.startSender(t)
	link := r.link(session)
	table := fmt.Sprint(explain(r.ui, includedIPv4)["table"]) // not always the first: a session was there before
	for _, command := range []string{
		"-4 rule del pref 4650", "-6 rule del pref 4650",
		"-4 route flush table " + table, "-6 route flush table " + table,
		"address flush dev " + link, "link set " + link + " down", "link set " + link + " mtu 1300",
	} {
		var took figures
		for range 3 {
			begun := time.Now()
			r.Host.Run(t, "sh", "-ec", "ip "+command)
			harness.Eventually(t, harness.Timeout, command+" is undone", func() error {
				if now, err := r.tryLook(); err != nil || now.text != whole {
					return fmt.Errorf("there is %v\n%s", err, now.text)
				}
				return nil
			})
			took = append(took, time.Since(begun))
			time.Sleep(settled)
		}
		took.require(t, command+": whole again after", time.Second)
	}
	r.requireState(wire.StateReconnecting)
	s.requireRate(t)
	if n := r.inClear(); n != 0 {
		t.Errorf("%d packets in clear", n)
	}
	r.ip(firstIPv4)
	r.disconnect()
	r.lockdown(false)
	r.requireClean(t)
}
