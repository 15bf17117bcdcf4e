package system

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Without descriptors the daemon cannot make a TUN or a channel. It says so,
// and goes on as before when there are some again.
func TestOutOfDescriptors(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	_, channel := v.establish()
	v.disconnect()
	channel.awaitEnd(t)
	v.requireClean(t)
	fds := v.descriptors(t)
	limit := func(n int) {
		t.Helper()
		v.Host.Run(t, "prlimit", "--pid", fmt.Sprint(v.daemon.Process().PID()), fmt.Sprintf("--nofile=%d:4096", n))
	}
	for free := range 4 {
		limit(fds + free)
		if err := v.ui.on(v.config, "Connect", dict{}).Err; err == nil {
			break // as many are enough
		}
		v.requireState(wire.StateFailed)
		v.requireClean(t)
	}
	v.disconnect()
	limit(fds)
	v.ui.refused(v.ui.on(v.config, "Connect", dict{}), wire.ErrFailed)
	limit(4096)
	session, _ := v.establish()
	now := v.descriptors(t)
	limit(now)
	v.provider.refused(v.provider.on(session, "OpenPacketChannel", dict{}), wire.ErrFailed)
	limit(4096)
	v.requireState(wire.StateConnected)
	v.ping(t, "1", includedIPv4)
	v.disconnect()
	v.requireClean(t)
	v.requireDescriptors(t, fds)
}

// A full disk: what cannot be stored is refused, and leaves nothing. The DNS is
// not touched where what it was cannot be kept.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.daemon.Stop(t)
	v.Host.Run(t, "sh", "-ec", fmt.Sprintf(`
		cp -a %[1]s /run/kept && mount -t tmpfs -o size=64k state %[1]s && cp -a /run/kept/. %[1]s
		dd if=/dev/zero of=%[1]s/ballast bs=4k 2>/dev/null || true`, v.daemon.StateDir))
	v.startAgain(t)
	v.register(dict{})
	v.provider.refused(v.provider.manager("CreateConfig", app, "Another", dict{}), wire.ErrFailed)
	v.provider.refused(v.provider.manager("FindConfig", app, "Another", dict{}), wire.ErrNotFound)
	v.ui.refused(v.ui.on(v.config, "Update", dict{"data": godbus.MakeVariant(dict{"x": godbus.MakeVariant("y")})}), wire.ErrFailed)
	if data := v.ui.property(v.config, "Data").(dict); len(data) != 0 {
		t.Errorf("the config has %v", data)
	}
	session := v.connect()
	v.provider.refused(v.provider.on(session, "SetParameters", fullTunnel()), wire.ErrFailed, "no space")
	v.requirePresence(t, connecting())
	plain := fullTunnel()
	delete(plain, "dnsServers")
	delete(plain, "domainSearch")
	v.configure(session, plain)
	v.notify(session, wire.NotifyConnected)
	v.requireState(wire.StateConnected)

	v.Host.Run(t, "sh", "-c", "rm "+v.daemon.StateDir+"/ballast")
	v.configure(session, fullTunnel())
	v.provider.must(v.provider.manager("CreateConfig", app, "Another", dict{}))
	v.disconnect()
	v.requireClean(t)
}

// The interface is deleted under a session.
func TestInterfaceDeleted(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session, channel := v.establish()
	v.provider.trace()
	v.Host.IP(t, "link del "+v.link(session))
	channel.awaitEnd(t)
	harness.Eventually(t, harness.Timeout, "the session has failed", func() error {
		if s := v.state(); s != wire.StateFailed {
			return errors.New(s)
		}
		return nil
	})
	reason := v.ui.property(v.config, "FailureReason").(string)
	if !strings.HasPrefix(reason, wire.ReasonInternalPrefix) {
		t.Errorf("the reason is %q", reason)
	}
	requireTrace(t, "the provider", v.provider.traceTo("-session", v.config, session),
		"config disconnecting", "disconnected: "+reason, "config failed ("+reason+")", "-session")
	v.requireClean(t)
	v.mainJob()
}

// A host without a way out, and one without IPv6, can have a session too.
func TestUnusualHosts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ prepare, undo []string }{
		"no default route": {[]string{"ip route del default", "ip -6 route del default"}, nil},
		"no network":       {[]string{"ip link set h0 down"}, nil},
		"no IPv6":          {[]string{"sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"}, nil},
		"strict rp_filter": {[]string{"sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1"}, nil},
		"forwarding":       {[]string{"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := newHost(t)
			for _, command := range c.prepare {
				m.Host.Run(t, "sh", "-c", command)
			}
			m.before, m.quick = m.Host.Snapshot(t, resolvConf), m.look(t).text
			v := m.withDaemon(t, harness.DaemonOptions{})
			session, _ := v.establish()
			v.ping(t, "2", includedIPv4)
			var warnings []string
			v.provider.must(v.provider.on(session, "SetParameters", fullTunnel()), &warnings)
			if name != "no IPv6" {
				v.ping(t, "2", includedIPv6)
				if len(warnings) != 0 {
					t.Errorf("warnings %q", warnings)
				}
			} else if want := `address "fd08::2/64" is left out`; len(warnings) != 1 || !contains(warnings[0], want) || !contains(v.daemon.Process().Output(), "is left out") {
				t.Errorf("warnings %q, want %q, and the log\n%s", warnings, want, v.daemon.Process().Output())
			}
			v.disconnect()
			v.requireClean(t)
		})
	}
}

// A client that does not read its packets, because it is stopped or busy, holds
// up nobody but itself.
func TestStuckClient(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.provider.must(v.provider.manager("UnregisterProvider", app, dict{}))
	client := v.startRole(t, roleClient, harness.Alice)
	client.Await(t, "registered")
	v.connect()
	client.Await(t, "configured")
	memory := v.status(t, "VmRSS")
	client.Signal(unix.SIGSTOP)
	conn, err := v.Host.Dial("udp", includedIPv4+":99", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 20000 {
		if _, err := conn.Write(make([]byte, 1300)); err != nil {
			t.Fatal(err)
		}
	}
	if grown := v.status(t, "VmRSS") - memory; grown > 16<<10 {
		t.Errorf("the daemon has grown by %d KiB", grown)
	}
	v.requireState(wire.StateConnected)
	begun := time.Now()
	v.disconnect()
	t.Logf("disconnected after %v", time.Since(begun))
	v.requireClean(t)
	v.connect()
	v.requirePresence(t, connecting())
	t.Logf("clean after %v", v.untilClean(t, client.Kill))
	v.requireState(wire.StateFailed)
}

// A Connect that cannot succeed leaves the session that is there alone.
func TestFailingConnectEndsNothing(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.establish()
	other := v.party(t, harness.Alice, "com.example.Other")
	other.provider.must(other.provider.manager("UnregisterProvider", other.app, dict{}))
	v.ui.refused(v.ui.on(other.config, "Connect", dict{}), wire.ErrProviderNotRunning)
	v.ui.refused(v.ui.on("/org/vpnprovider1/config/x", "Connect", dict{}), wire.ErrNotFound)
	v.ui.refused(v.ui.on(other.config, "Connect", dict{"x": godbus.MakeVariant(1)}), wire.ErrInvalidParameter)
	v.requireState(wire.StateConnected)
	v.ping(t, "1", includedIPv4)
}

// Costly calls are limited where no test switches that off.
func TestCallRate(t *testing.T) {
	t.Parallel()
	v := newVPN(t, "--call-rate", "20:5")
	session := v.connect()
	begun, refused := time.Now(), 0
	for range 40 {
		switch err := v.provider.on(session, "SetParameters", fullTunnel()).Err; errorName(err) {
		case "":
		case wire.ErrLimitExceeded:
			refused++
		default:
			t.Error(err)
		}
	}
	// One of the 20 was the CreateConfig.
	if allowed := 19 + 1 + int(time.Since(begun).Seconds()*5); 40-refused > allowed || refused > 21 {
		t.Errorf("%d of 40 calls were refused in %v", refused, time.Since(begun))
	}
	v.requirePresence(t, configured())
	v.disconnect()
}

// What the service manager is told, and that nobody is left without the
// daemon who needs it.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	m := newHost(t)
	v := m.withDaemon(t, harness.DaemonOptions{Args: []string{"--idle-exit", "3s"}, Env: []string{"WATCHDOG_USEC=200000"}})
	session := v.connect()
	v.configure(session, fullTunnel())
	notified := func(want string, times int) {
		t.Helper()
		harness.Eventually(t, harness.Timeout, want, func() error {
			got := v.daemon.Notified()
			if n := strings.Count(strings.Join(got, "\n"), want); n < times {
				return fmt.Errorf("notified %q", got)
			}
			return nil
		})
	}
	notified("WATCHDOG=1", 40) // longer than the idle exit would take
	v.requireState(wire.StateConfigured)
	v.disconnect()
	v.provider.Close()
	if err := v.daemon.Process().Wait(t); err != nil {
		t.Errorf("the idle daemon ended with %v", err)
	}
	notified("STOPPING=1", 1)
	v.requireClean(t)
}

// A session that ends, by the user or by the death of its client, while its
// parameters are being applied: the call fails, and nothing is left.
func TestEndWhileApplying(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	other := v.dial(t, harness.Alice)
	for round := range 6 {
		v.provider = v.dial(t, harness.Alice)
		v.register(dict{"replace": godbus.MakeVariant(true)})
		session := v.connect()
		if round%3 != 0 {
			v.configure(session, fullTunnel())
		}
		small := len(v.look(t).text)
		done := v.provider.begin(session, "SetParameters", slow())
		harness.Eventually(t, harness.Timeout, "it has begun", func() error {
			if now, err := v.tryLook(); err == nil && len(now.text) <= small {
				return errors.New("not yet")
			}
			return nil
		})
		took := v.untilClean(t, func() {
			if round%2 == 0 {
				v.provider.Close()
				return
			}
			other.must(other.on(v.config, "Disconnect", dict{}))
		})
		t.Logf("clean after %v, the call: %v", took, (<-done).Err)
	}
}

// Two processes take the same app from each other, with sessions.
func TestReplacePingPong(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	rivals := []*conn{v.provider, v.dial(t, harness.Alice)}
	for i := range 30 {
		winner, loser := rivals[i%2], rivals[(i+1)%2]
		winner.must(winner.manager("RegisterProvider", app, dict{"replace": godbus.MakeVariant(true)}))
		session := v.connect()
		winner.must(winner.on(session, "SetParameters", fullTunnel()))
		loser.refused(loser.on(session, "SetParameters", fullTunnel()), wire.ErrNotOwner)
		if told := loser.trace(session); len(told) > 0 && told[len(told)-1] == "connected" {
			t.Errorf("the loser was told %q", told)
		}
		v.requirePresence(t, configured())
	}
	v.disconnect()
	v.requireClean(t)
}
