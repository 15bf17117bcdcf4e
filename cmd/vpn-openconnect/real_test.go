package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/openconnecttest"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// TestMain lets the test binary also be a fake openconnect and our script.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == asScript {
		os.Exit(script(os.Args[2]))
	}
	openconnecttest.Main()
	harness.Main(m)
}

// user is who runs the client, with no capability.
const user = harness.Alice

// mark is in the environment of the client and so of what it starts: other
// tests on this machine may run as the same user.
func mark() string { return fmt.Sprintf("VPN_OPENCONNECT_TEST=%d", os.Getpid()) }

// lab is a host with the daemon and an internet with a VPN server.
type lab struct {
	*harness.Topology
	bus    *harness.Bus
	daemon *harness.Daemon
	server *harness.OCServ
	before harness.Snapshot
	client *client.Client // of the user, beside the program's own
}

func newLab(t *testing.T, opts harness.OCServOptions) *lab {
	t.Helper()
	harness.Require(t, "openconnect", "ocserv", "dbus-daemon")
	l := &lab{Topology: harness.NewTopology(t)}
	harness.StartWeb(t, l.Server, 80)
	l.server = harness.StartOCServ(t, l.Server, opts)
	l.bus = harness.StartBus(t, l.Host, harness.BusOptions{})
	l.daemon = harness.StartDaemon(t, l.Host, l.bus, harness.DaemonOptions{})
	l.before = l.Host.Snapshot(t, "/etc/resolv.conf")
	return l
}

// start runs the program as the user.
func (l *lab) start(t *testing.T, args ...string) *harness.Process {
	t.Helper()
	return l.Host.Start(t, harness.Command{
		Argv:  append([]string{harness.Binary(t, "vpn-openconnect"), "--bus", l.bus.Address}, args...),
		UID:   user,
		Env:   []string{mark()},
		Stdin: l.server.Password + "\n",
	})
}

// config reads the user's config.
func (l *lab) config(t *testing.T, name string) client.ConfigProperties {
	t.Helper()
	if l.client == nil {
		c, err := client.Dial(t.Context(), client.WithAddress(l.bus.Address))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		l.client = c
	}
	all, err := l.client.ListConfigs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range all {
		if info.Name == name {
			p, err := l.client.Config(info.Path).Properties(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
	}
	return client.ConfigProperties{}
}

func (l *lab) awaitState(t *testing.T, name string, want client.State) client.ConfigProperties {
	t.Helper()
	var p client.ConfigProperties
	harness.Eventually(t, harness.Timeout, name+" is "+string(want), func() error {
		if p = l.config(t, name); p.State != want {
			return fmt.Errorf("it is %q (%s)", p.State, p.FailureReason)
		}
		return nil
	})
	return p
}

func (l *lab) session(t *testing.T, path string) client.SessionProperties {
	t.Helper()
	p, err := l.client.Session(path).Properties(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fetchFrom fetches a page and checks which of our addresses the server saw.
func (l *lab) fetchFrom(t *testing.T, url, network string) {
	t.Helper()
	got, err := l.Host.Fetch(t, url)
	addr, parseErr := netip.ParseAddr(strings.TrimSpace(got))
	if err != nil || parseErr != nil || !netip.MustParsePrefix(network).Contains(addr) {
		t.Errorf("%s came from %q (%v), want an address in %s", url, got, errors.Join(err, parseErr), network)
	}
}

// exitCode waits for the end.
func exitCode(t *testing.T, p *harness.Process) int {
	t.Helper()
	var exit interface{ ExitCode() int }
	switch err := p.Wait(t); {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	default:
		t.Fatal(err)
		return 0
	}
}

// nothingLeft checks the host and the processes of the user.
func (l *lab) nothingLeft(t *testing.T) {
	t.Helper()
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
	harness.Eventually(t, harness.Timeout, "no process of the user is left", func() error {
		if pids := userProcesses(t); len(pids) > 0 {
			return fmt.Errorf("left: %v", pids)
		}
		return nil
	})
}

// userProcesses are the client and what it started: the status of each by its
// process id.
func userProcesses(t *testing.T) map[string]string {
	t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, entry := range all {
		status, err := os.ReadFile("/proc/" + entry.Name() + "/status")
		environ, _ := os.ReadFile("/proc/" + entry.Name() + "/environ")
		if err == nil && strings.Contains(string(environ), mark()) && !strings.Contains(string(status), "State:\tZ") {
			found[entry.Name()] = string(status)
		}
	}
	return found
}

// TestFullTunnel is the main job: an unprivileged user, everything through the
// tunnel but what the server excludes, DNS, disconnect by a user interface.
func TestFullTunnel(t *testing.T) {
	l := newLab(t, harness.OCServOptions{
		Network: "10.99.0.0/24", Network6: "fd99::/64",
		NoRoutes: []string{"203.0.113.64/255.255.255.192"}, DNS: []string{harness.PrivateDNS}, Domain: "corp.test",
	})
	harness.StartDNS(t, l.Server, harness.PrivateDNS, map[string]string{"intranet.corp.test": "10.98.0.80"})
	p := l.start(t, l.server.OpenConnect()...)
	cfg := l.awaitState(t, l.server.URL, client.StateConnected)

	for pid, status := range userProcesses(t) {
		if !strings.Contains(status, fmt.Sprintf("\nUid:\t%d\t%[1]d\t%[1]d\t", user)) ||
			!strings.Contains(status, "CapEff:\t0000000000000000") || !strings.Contains(status, "CapPrm:\t0000000000000000") {
			t.Errorf("process %s is privileged:\n%s", pid, status)
		}
	}
	if n := len(userProcesses(t)); n != 3 {
		t.Errorf("%d processes, want vpn-openconnect, openconnect and its script", n)
	}
	clear := l.Clear(t)
	l.fetchFrom(t, "http://10.98.0.80/", "10.99.0.0/24")
	l.fetchFrom(t, "http://[fd98::80]/", "fd99::/64")
	l.fetchFrom(t, "http://203.0.113.9/", "10.99.0.0/24")
	l.fetchFrom(t, "http://[2001:db8:113::9]/", "fd99::/64")
	l.fetchFrom(t, "http://intranet.corp.test/", "10.99.0.0/24")
	l.fetchFrom(t, "http://intranet/", "10.99.0.0/24")
	if n := clear.Count(t, harness.To(harness.PrivateIPv4)) + clear.Count(t, harness.To(harness.InternetIPv4)); n != 0 {
		t.Errorf("%d packets in clear:\n%v", n, clear)
	}
	l.fetchFrom(t, "http://203.0.113.66/", harness.HostIPv4+"/32")

	session := l.session(t, cfg.Session)
	if !session.Reconnect || session.MTU < 1280 || session.MTU > 1500 || len(session.Addresses) != 2 {
		t.Errorf("session %+v", session)
	}
	if fmt.Sprint(cfg.Data["server"]) != l.server.URL || strings.Contains(fmt.Sprint(cfg.Data), "wonderland") {
		t.Errorf("data %v", cfg.Data)
	}

	if err := l.client.Config(cfg.Path).Disconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, p); code != 0 {
		t.Errorf("exit code %d:\n%s", code, p.Output())
	}
	p.Await(t, "Send BYE packet") // it logged out
	l.nothingLeft(t)
}

// TestReaderEnds: whoever reads the output, such as tee, may end first. openconnect
// logs out all the same.
func TestReaderEnds(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	const script = `{ "$@" 2>&1; echo "exit code $?" >&2; } | sed /connected:/q`
	p := l.Host.Start(t, harness.Command{
		Argv:  append([]string{"sh", "-c", script, "sh", harness.Binary(t, "vpn-openconnect"), "--bus", l.bus.Address}, l.server.OpenConnect()...),
		UID:   user,
		Env:   []string{mark()},
		Stdin: l.server.Password + "\n",
	})
	p.Await(t, "connected:")
	cfg := l.awaitState(t, l.server.URL, client.StateConnected)
	if err := l.client.Config(cfg.Path).Disconnect(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Await(t, "exit code 0")
	l.awaitState(t, l.server.URL, client.StateIdle)
	l.nothingLeft(t)
}

// TestSplitTunnel: only what the server names, and its domains.
func TestSplitTunnel(t *testing.T) {
	l := newLab(t, harness.OCServOptions{
		Network: "10.99.0.0/24", Routes: []string{harness.PrivateIPv4}, NoRoutes: []string{"10.98.7.0/255.255.255.0"},
		DNS: []string{harness.PrivateDNS}, SplitDNS: []string{"corp.test", "int.test"}, Domain: "corp.test", MTU: 1300,
	})
	p := l.start(t, append(l.server.OpenConnect(), "--config-name", "Work")...)
	cfg := l.awaitState(t, "Work", client.StateConnected)
	s := l.session(t, cfg.Session)
	for what, pair := range map[string][2]string{
		"inclusions": {"[10.99.0.0/24 10.98.0.0/16 10.98.0.53/32]", fmt.Sprint(s.InclusionList)},
		"exclusions": {"[198.51.100.2/32 10.98.7.0/24]", fmt.Sprint(s.ExclusionList)},
		"DNS":        {"[10.98.0.53]", fmt.Sprint(s.DNSServers)},
		"search":     {"[corp.test]", fmt.Sprint(s.DomainSearch)},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %s, want %s", what, pair[1], pair[0])
		}
	}
	if len(s.MatchDomains) != 2 || s.MTU > 1300 {
		t.Errorf("match domains %v, MTU %d", s.MatchDomains, s.MTU)
	}
	l.fetchFrom(t, "http://10.98.0.80/", "10.99.0.0/24")
	l.fetchFrom(t, "http://10.98.7.80/", harness.HostIPv4+"/32")
	l.fetchFrom(t, "http://203.0.113.9/", harness.HostIPv4+"/32")
	p.Signal(unix.SIGTERM)
	if code := exitCode(t, p); code != 0 {
		t.Errorf("exit code %d", code)
	}
	l.nothingLeft(t)

	// The same again, from what the config keeps. The password is no part of it.
	p = l.start(t, "--config-name=Work", "--passwd-on-stdin")
	l.awaitState(t, "Work", client.StateConnected)
	l.fetchFrom(t, "http://10.98.0.80/", "10.99.0.0/24")
	p.Signal(unix.SIGINT)
	if code := exitCode(t, p); code != 0 {
		t.Errorf("exit code %d", code)
	}
	l.nothingLeft(t)
}

// TestWrongPassword: openconnect's own exit code, and a failed config.
func TestWrongPassword(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	l.server.Password = "wrong"
	p := l.start(t, l.server.OpenConnect()...)
	if code := exitCode(t, p); code != 1 && code != 2 {
		t.Errorf("exit code %d", code)
	}
	l.awaitState(t, l.server.URL, client.StateFailed)
	l.nothingLeft(t)
}

// TestServerEnds: the server goes, with a goodbye if it comes to that.
func TestServerEnds(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	p := l.start(t, append(l.server.OpenConnect(), "--reconnect-timeout=0")...)
	l.awaitState(t, l.server.URL, client.StateConnected)
	l.server.Signal(unix.SIGTERM)
	if code := exitCode(t, p); code != 1 {
		t.Errorf("exit code %d:\n%s", code, p.Output())
	}
	l.awaitState(t, l.server.URL, client.StateFailed)
	l.nothingLeft(t)
}

// TestKill9 of each process that could be killed.
func TestKill9(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	for _, victim := range []string{"vpn-openconnect", "openconnect", "daemon"} {
		p := l.start(t, l.server.OpenConnect()...)
		l.awaitState(t, l.server.URL, client.StateConnected)
		p.Await(t, "vpn-openconnect: connected: ") // it knows, too
		switch victim {
		case "vpn-openconnect":
			_ = unix.Kill(p.PID(), unix.SIGKILL)
			<-p.Exited()
		case "openconnect":
			for pid, status := range userProcesses(t) {
				if strings.HasPrefix(status, "Name:\topenconnect\n") {
					kill9(t, pid)
				}
			}
			if code := exitCode(t, p); code != 128+9 {
				t.Errorf("exit code %d after the kill of openconnect:\n%s", code, p.Output())
			}
		case "daemon":
			l.daemon.Kill9()
			if code := exitCode(t, p); code != exitFailure || !strings.Contains(p.Output(), "the session ended: internal error") {
				t.Errorf("exit code %d after the kill of the daemon:\n%s", code, p.Output())
			}
			l.daemon.Cleanup(t)
		}
		l.nothingLeft(t)
	}
}

func kill9(t *testing.T, pid string) {
	t.Helper()
	var n int
	if _, err := fmt.Sscan(pid, &n); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(n, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// TestLinkLoss: openconnect survives the loss of the link below, and when told
// to reconnect does so at once, though it would have waited for 10 s more. The
// script, the socket and the session are the same all the time.
func TestLinkLoss(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	p := l.start(t, append(l.server.OpenConnect(), "--force-dpd=1")...)
	l.awaitState(t, l.server.URL, client.StateConnected)
	l.fetchFrom(t, "http://10.98.0.80/", "10.99.0.0/24")
	clear := l.Clear(t)

	l.Host.IP(t, "link set h0 down")
	p.Await(t, "Failed to reconnect to host")
	p.Await(t, "sleep 10s")
	l.Host.IP(t, "link set h0 up", "route add default via "+harness.RouterIPv4+" dev h0")
	began := time.Now()
	p.Signal(unix.SIGUSR2)
	p.Await(t, `(?s)Connected to HTTPS.*sleep 10s.*Connected to HTTPS.*CSTP connected`)
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the reconnect took %v", took)
	}
	l.awaitState(t, l.server.URL, client.StateConnected)
	l.fetchFrom(t, "http://10.98.0.80/", "10.99.0.0/24")
	if n := clear.Count(t, harness.To(harness.PrivateIPv4)); n != 0 {
		t.Errorf("%d packets in clear:\n%v", n, clear)
	}
	p.Signal(unix.SIGTERM)
	if code := exitCode(t, p); code != 0 {
		t.Errorf("exit code %d:\n%s", code, p.Output())
	}
}

// TestNetworkChanges: the uplink is lost, comes back, and is replaced by
// another. openconnect is told each time, and the session is connected again.
func TestNetworkChanges(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	l.SecondUplink(t)
	p := l.start(t, l.server.OpenConnect()...)
	l.awaitState(t, l.server.URL, client.StateConnected)
	l.fetchFrom(t, "http://10.98.0.80/", "10.99.0.0/24")

	clear := l.Clear(t)
	l.Host.IP(t, "link set h0 down")
	l.awaitState(t, l.server.URL, client.StateReconnecting)
	p.Await(t, "the network is gone")
	l.Host.IP(t, "link set h0 up", "route add default via "+harness.RouterIPv4+" dev h0")
	l.awaitState(t, l.server.URL, client.StateConnected)
	l.fetchFrom(t, "http://10.98.0.80/", "10.99.0.0/24")

	l.Host.IP(t, "route replace default via "+harness.SecondRouterIPv4+" dev h1")
	l.awaitState(t, l.server.URL, client.StateReconnecting)
	l.awaitState(t, l.server.URL, client.StateConnected)
	l.fetchFrom(t, "http://10.98.0.80/", "10.99.0.0/24")
	if n := clear.Count(t, harness.To(harness.PrivateIPv4)); n != 0 {
		t.Errorf("%d packets in clear:\n%v", n, clear)
	}
	p.Signal(unix.SIGTERM)
	if code := exitCode(t, p); code != 0 {
		t.Errorf("exit code %d:\n%s", code, p.Output())
	}
}

// TestSleep: the client does not hold up the machine's sleep, and is connected
// again after it, in the same network and in another.
func TestSleep(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	l.SecondUplink(t)
	logind := harness.StartLogind(t, l.bus)
	p := l.start(t, l.server.OpenConnect()...)
	l.awaitState(t, l.server.URL, client.StateConnected)
	clear := l.Clear(t)
	for _, way := range []string{harness.RouterIPv4 + " dev h0", harness.SecondRouterIPv4 + " dev h1"} {
		if took := <-logind.Sleep(t); took > 2500*time.Millisecond { // the daemon waits for 3 s
			t.Errorf("the client held up the sleep for %v", took)
		}
		l.Host.IP(t, "route replace default via "+way)
		logind.Wake(t)
		p.Await(t, "the network has changed, reconnecting")
		l.awaitState(t, l.server.URL, client.StateConnected)
		l.fetchFrom(t, "http://10.98.0.80/", "10.99.0.0/24")
	}
	if n := clear.Count(t, harness.To(harness.PrivateIPv4)); n != 0 {
		t.Errorf("%d packets in clear:\n%v", n, clear)
	}
	p.Signal(unix.SIGTERM)
	if code := exitCode(t, p); code != 0 {
		t.Errorf("exit code %d:\n%s", code, p.Output())
	}
}

// TestSecondInstance is told apart from a broken one.
func TestSecondInstance(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	p := l.start(t, l.server.OpenConnect()...)
	l.awaitState(t, l.server.URL, client.StateConnected)
	second := l.start(t, l.server.OpenConnect()...)
	if code := exitCode(t, second); code != exitFailure || !strings.Contains(second.Output(), "another vpn-openconnect of yours is running") {
		t.Errorf("exit code %d: %s", code, second.Output())
	}
	if state := l.config(t, l.server.URL).State; state != client.StateConnected {
		t.Errorf("the first is %s", state)
	}
	p.Signal(unix.SIGTERM)
	exitCode(t, p)
	l.nothingLeft(t)
}

// TestTooManyRoutes: openconnect cannot start its script with them.
func TestTooManyRoutes(t *testing.T) {
	var routes []string
	for i := range 4000 {
		routes = append(routes, fmt.Sprintf("10.%d.%d.%d/255.255.255.240", 100+i>>12, i>>4&255, i&15*16))
	}
	l := newLab(t, harness.OCServOptions{Routes: routes})
	p := l.start(t, l.server.OpenConnect()...)
	if code := exitCode(t, p); code != exitFailure || !strings.Contains(p.Output(), "thousands of routes") {
		t.Errorf("exit code %d:\n%s", code, p.Output())
	}
	l.awaitState(t, l.server.URL, client.StateFailed)
	l.nothingLeft(t)
}
