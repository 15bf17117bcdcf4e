package system

import (
	"math/rand/v2"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// instant is a kind of moment at which the daemon is killed.
type instant struct {
	name string
	n    int
	kill func(v *vpn, s *sender, session godbus.ObjectPath) (within bool)

	// uncovered: the session does not cover the packets yet, or the user has
	// asked for its end, so they may be in clear.
	uncovered bool
}

func instants() []instant {
	updates := func(v *vpn, session godbus.ObjectPath) bool {
		v.t.Helper()
		// One after the other is begun, so the kill is within one of them, unless
		// this test gets the processor when all is done.
		sets := parameterSets()
		var last <-chan *godbus.Call
		for i := range 2 * len(sets) {
			last = v.provider.begin(session, "SetParameters", sets[i%len(sets)].parameters)
		}
		v.killWithin(40 * time.Millisecond)
		return (<-last).Err != nil
	}
	return []instant{
		{name: "while connected", n: times(12, 250), kill: func(v *vpn, s *sender, _ godbus.ObjectPath) bool {
			s.awaitMore(v.t, rand.Int64N(20))
			v.daemon.Kill9()
			return true
		}},
		{name: "during updates", n: times(18, 400), kill: func(v *vpn, _ *sender, session godbus.ObjectPath) bool {
			return updates(v, session)
		}},
		{name: "during Disconnect", n: times(10, 150), uncovered: true, kill: func(v *vpn, _ *sender, _ godbus.ObjectPath) bool {
			v.ui.begin(v.config, "Disconnect", dict{})
			v.killWithin(8 * time.Millisecond)
			return true
		}},
		{name: "during Connect and the first parameters", n: times(10, 200), uncovered: true, kill: func(v *vpn, _ *sender, _ godbus.ObjectPath) bool {
			v.disconnect()
			return updates(v, v.connect())
		}},
	}
}

// The daemon is killed under traffic, at random moments of a connected
// session, of updates, of its beginning and its end. What was to go into the
// tunnel does not leave in clear until the rest was removed, by --cleanup or
// by the daemon's next start; and then nothing is left.
func TestDaemonKilled(t *testing.T) {
	v := newVPN(t)
	s := v.startSender(t)
	s.requireSeen(t)
	files := v.files()
	for _, at := range instants() {
		clear, within, refused, tunnelled := 0, 0, int64(0), int64(0)
		for i := range at.n {
			session, channel := v.establish()
			s.requireTunnelled(t, channel, flowIPv4, flowIPv6)
			clearBefore, refusedBefore := s.inClear(t), s.unreachable()
			if at.kill(v, s, session) {
				within++
			}
			channel.awaitEnd(t)
			s.awaitMore(t, 100)
			n := s.inClear(t) - clearBefore
			clear += n
			refused += s.unreachable() - refusedBefore
			tunnelled += sum(&channel.sent)
			if n != 0 && !at.uncovered {
				t.Errorf("%s: %d packets in clear, with\n%v", at.name, n, v.look(t).text)
			}
			v.comeBack(i%2 == 0)
			if now := v.files(); now != files {
				t.Errorf("%s: files\n%s\nbefore\n%s", at.name, now, files)
			}
			s.requireSeen(t)
			progress(t, i+1, at.n)
		}
		figure(t, "killed "+at.name, "%d times: %d packets through the tunnel, %d in clear, %d refused by the guard, nothing left over", at.n, tunnelled, clear, refused)
		if refused == 0 && !at.uncovered {
			t.Errorf("%s: the guard refused nothing", at.name)
		}
		if within < at.n/2 {
			t.Errorf("%s: %d of %d kills were", at.name, within, at.n)
		}
	}
	s.requireRate(t)
	v.mainJob()
}

// killWithin kills the daemon at a random moment from now.
func (v *vpn) killWithin(longest time.Duration) {
	time.Sleep(rand.N(longest)) // chance, not synchronisation
	v.daemon.Kill9()
}

// files lists what the daemon could leave behind.
func (v *vpn) files() string {
	v.t.Helper()
	return v.Host.Run(v.t, "find", "/etc", v.daemon.StateDir, "-maxdepth", "1")
}

// comeBack starts the daemon again on what a killed one left, and the provider
// registers again.
func (v *vpn) comeBack(cleanup bool) {
	t := v.t
	t.Helper()
	if cleanup {
		// A cleanup that is killed leaves something to the next, and nothing else.
		for range 2 {
			p := v.Host.Start(t, harness.Command{Argv: v.daemon.Command("--cleanup")})
			time.Sleep(rand.N(60 * time.Millisecond)) // chance, not synchronisation
			p.Kill()
		}
		v.daemon.Cleanup(t)
		v.Host.RequireSnapshot(t, v.before, resolvConf)
	}
	v.startAgain(t)
	v.Host.RequireSnapshot(t, v.before, resolvConf)
	v.register(dict{})
	v.requireState(wire.StateIdle)
}
