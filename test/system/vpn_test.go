package system

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"github.com/vishvananda/netlink"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	app        = "com.example.Demo"
	configName = "Work"
	resolvConf = "/etc/resolv.conf"
)

// machine is a host with the daemon, on a bus with the shipped policy.
type machine struct {
	*harness.Topology
	bus    *harness.Bus
	daemon *harness.Daemon
	kernel *netlink.Handle  // of the host
	before harness.Snapshot // of the host, when the daemon had never run
	quick  string           // the same, as look tells it

	tunnelled atomic.Int64 // packets of senders that came out of channels
}

// newMachine is a machine on which the daemon runs.
func newMachine(t testing.TB, args ...string) *machine {
	t.Helper()
	m := newHost(t)
	m.start(t, harness.DaemonOptions{Args: args})
	return m
}

// newHost is a machine on which the daemon has never run.
func newHost(t testing.TB) *machine {
	t.Helper()
	harness.Require(t, "dbus-daemon", "nft", "ping")
	m := &machine{Topology: harness.NewTopology(t)}
	m.kernel = openKernel(t, m.Host)
	m.before, m.quick = m.Host.Snapshot(t, resolvConf), m.look(t).text
	return m
}

// start starts the bus and the daemon for the first time.
func (m *machine) start(t testing.TB, opts harness.DaemonOptions) {
	t.Helper()
	m.startBus(t)
	m.daemon = harness.NewDaemon(t, m.Host, m.bus, opts)
	m.startAgain(t)
}

func (m *machine) startBus(t testing.TB, policies ...string) {
	t.Helper()
	m.bus = harness.StartBus(t, m.Host, harness.BusOptions{Policy: harness.ShippedPolicy, PolicyFiles: policies})
}

// startAgain starts the daemon. When the test ends it is stopped, where it
// still runs, and must leave the host as it was.
func (m *machine) startAgain(t testing.TB) {
	t.Helper()
	m.daemon.Start(t)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		select {
		case <-m.daemon.Process().Exited():
		default:
			m.daemon.Stop(t)
		}
		m.Host.RequireSnapshot(t, m.before, m.daemon.ResolvConf)
	})
}

// vpn is an app on the machine: a provider, a user interface of the same user,
// and a config.
type vpn struct {
	*machine
	t        testing.TB
	app      string
	provider *conn
	ui       *conn
	config   godbus.ObjectPath
}

// newVPN is a machine with an app of Alice's.
func newVPN(t testing.TB, args ...string) *vpn {
	t.Helper()
	return newMachine(t, args...).party(t, harness.Alice, app)
}

// party brings an app, with connections of its own, which end with t.
func (m *machine) party(t testing.TB, uid uint32, app string) *vpn {
	t.Helper()
	v := &vpn{machine: m, t: t, app: app, provider: m.dial(t, uid), ui: m.dial(t, uid)}
	v.register(dict{})
	return v
}

// register makes the provider known, and the config, if it is not yet there.
func (v *vpn) register(options dict) {
	v.t.Helper()
	v.provider.must(v.provider.manager("RegisterProvider", v.app, options))
	call := v.provider.manager("CreateConfig", v.app, configName, dict{})
	if errorName(call.Err) == wire.ErrAlreadyExists {
		call = v.provider.manager("FindConfig", v.app, configName, dict{})
	}
	v.provider.must(call, &v.config)
	v.ui.must(v.ui.manager("ListConfigs")) // who has called is told of changes
}

func (v *vpn) connect() godbus.ObjectPath {
	v.t.Helper()
	var session godbus.ObjectPath
	v.ui.must(v.ui.on(v.config, "Connect", dict{}), &session)
	return session
}

// establish connects, all the way.
func (v *vpn) establish() (godbus.ObjectPath, *endpoint) {
	v.t.Helper()
	session := v.connect()
	end := v.open(session)
	v.configure(session, fullTunnel())
	v.notify(session, wire.NotifyConnected)
	return session, end
}

func (v *vpn) configure(session godbus.ObjectPath, parameters dict) {
	v.t.Helper()
	v.provider.must(v.provider.on(session, "SetParameters", parameters))
}

func (v *vpn) notify(session godbus.ObjectPath, state string) {
	v.t.Helper()
	v.provider.must(v.provider.on(session, "NotifyConnectionStateChanged", state, dict{}))
}

// disconnect ends the session as a user does.
func (v *vpn) disconnect() {
	v.t.Helper()
	v.ui.must(v.ui.on(v.config, "Disconnect", dict{}))
}

func (v *vpn) state() string {
	v.t.Helper()
	return v.ui.property(v.config, "State").(string)
}

func (v *vpn) requireState(want string) {
	v.t.Helper()
	if got := v.state(); got != want {
		v.t.Fatalf("the state is %s, want %s", got, want)
	}
}

// link is the name of the session's interface.
func (v *vpn) link(session godbus.ObjectPath) string {
	v.t.Helper()
	return v.ui.property(session, "Interface").(string)
}

// awaitCounted waits until the session has counted so many, or more. A packet may
// have arrived before it is counted.
func (v *vpn) awaitCounted(session godbus.ObjectPath, name string, least uint64) uint64 {
	v.t.Helper()
	var n uint64
	harness.Eventually(v.t, harness.Timeout, name, func() error {
		if n = v.ui.property(session, "Statistics").(map[string]uint64)[name]; n < least {
			return fmt.Errorf("%d are counted, want %d", n, least)
		}
		return nil
	})
	return n
}

// fullTunnel is a set of parameters that covers everything but the server.
func fullTunnel() dict {
	return dict{
		"address":       godbus.MakeVariant("10.8.0.2/24"),
		"addresses":     godbus.MakeVariant([]string{"fd08::2/64"}),
		"inclusionList": godbus.MakeVariant([]string{"0.0.0.0/0", "::/0"}),
		"exclusionList": godbus.MakeVariant([]string{harness.ServerIPv4}),
		"dnsServers":    godbus.MakeVariant([]string{harness.PrivateDNS}),
		"domainSearch":  godbus.MakeVariant([]string{"corp.example"}),
		"mtu":           godbus.MakeVariant("1400"),
	}
}

// Addresses that every set of parameters of these tests includes.
const (
	includedIPv4 = "203.0.113.7"
	includedIPv6 = "2001:db8:113::7"
)

func (m *machine) ping(t testing.TB, count, address string) {
	t.Helper()
	m.Host.Run(t, "ping", "-c"+count, "-i0.05", "-W20", address)
}

// The main job: a user connects a config of an app that has no privileges;
// packets go through it; when it is disconnected everything is as it was.
func TestMainJob(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.mainJob()
}

func (v *vpn) mainJob() {
	t := v.t
	t.Helper()
	session, _ := v.establish()
	v.requireState(wire.StateConnected)
	clear := v.Clear(t)
	v.ping(t, "3", includedIPv4)
	v.ping(t, "3", includedIPv6)
	if n := clear.Count(t, harness.To(harness.InternetIPv4)) + clear.Count(t, harness.To(harness.InternetIPv6)); n != 0 {
		t.Errorf("%d packets to an included block in clear:\n%v", n, clear)
	}
	v.ping(t, "1", harness.ServerIPv4)
	if n := clear.Count(t, harness.To(harness.ServerIPv4+"/32")); n != 1 {
		t.Errorf("%d packets to the excluded server in clear", n)
	}
	v.awaitCounted(session, "txPackets", 6)
	v.awaitCounted(session, "rxPackets", 6)
	if text := v.Host.ReadFile(t, v.daemon.ResolvConf); !contains(text, harness.PrivateDNS, "corp.example") {
		t.Errorf("resolv.conf:\n%s", text)
	}
	v.disconnect()
	v.requireState(wire.StateIdle)
	v.Host.RequireSnapshot(t, v.before, v.daemon.ResolvConf)
	v.ping(t, "1", includedIPv4)
	if n := clear.Count(t, harness.To(harness.InternetIPv4)); n != 1 {
		t.Errorf("%d packets in clear after the end, want the ping", n)
	}
}

func contains(text string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}
