package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// connected is a lab whose user has a full tunnel up, by a file work.conf.
func connected(t testing.TB) (l *lab, s *wgServer, up *harness.Process) {
	t.Helper()
	l = newLab(t)
	s = l.startServer(t, l.Server)
	file := l.file(t, "work.conf", 0o600, l.section(""), s.peer(harness.ServerIPv4, "0.0.0.0/0, ::/0"))
	up = l.start(t, "up", file)
	up.Await(t, "(?m)^work: connected$")
	return l, s, up
}

// endpoint is where the tunnel has its one peer.
func (l *lab) endpoint(t testing.TB) string {
	t.Helper()
	reports := l.reports(t)
	if len(reports) != 1 || reports[0].WireGuard == nil || len(reports[0].WireGuard.Peers) != 1 {
		t.Fatalf("status %+v", reports)
	}
	return reports[0].WireGuard.Peers[0].Endpoint
}

// A server that speaks from another address and port is answered there.
func TestServerRoams(t *testing.T) {
	t.Parallel()
	l, s, _ := connected(t)
	l.requireEcho(t, tunnelIPv4, insideIPv4)
	const roamed = "198.51.100.9"
	l.Server.IP(t, "addr add "+roamed+"/24 dev s0", "route replace default via 198.51.100.1 src "+roamed)
	s.Signal(unix.SIGUSR1)
	want := net.JoinHostPort(roamed, fmt.Sprint(serverPort+1))
	harness.Eventually(t, harness.Timeout, "the client follows", func() error {
		if got := l.endpoint(t); got != want {
			return fmt.Errorf("the endpoint is %s", got)
		}
		return nil
	})
	l.requireFrom(t, tunnelIPv4, insideIPv4)
	l.requireFrom(t, tunnelIPv6, insideIPv6)
}

// A client that is killed takes everything with it, and can begin anew.
func TestClientKilled(t *testing.T) {
	t.Parallel()
	l, _, up := connected(t)
	l.requireFrom(t, tunnelIPv4, insideIPv4)
	up.Kill()
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
	l.requireFrom(t, harness.HostIPv4, insideIPv4)
	if got := l.reports(t, "work")[0]; got.State != "failed" || got.Reason != "provider gone" {
		t.Errorf("status %+v", got)
	}
	up = l.start(t, "up", "work")
	up.Await(t, "(?m)^work: connected$")
	l.requireFrom(t, tunnelIPv4, insideIPv4)
}

// Without the daemon there is no tunnel, and nothing in clear before it is
// back; the client says so and ends.
func TestDaemonKilled(t *testing.T) {
	t.Parallel()
	l, _, up := connected(t)
	clear := l.Clear(t)
	l.daemon.Kill9()
	if got, err := l.Host.Fetch(t, "http://"+insideIPv4+"/"); err == nil {
		t.Errorf("a page came from %q", got)
	}
	if n := clear.Count(t, harness.To(harness.InternetIPv4)); n != 0 {
		t.Errorf("%d packets in clear:\n%v", n, clear)
	}
	l.daemon.Start(t)
	if code := codeOf(t, up.Wait(t)); code != ui.ExitFailed || !strings.Contains(up.Output(), "work: the connection has ended: the daemon was restarted") {
		t.Errorf("exit code %d:\n%s", code, up.Output())
	}
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
}

func TestDaemonStaysAway(t *testing.T) {
	t.Parallel()
	l, _, up := connected(t)
	l.daemon.Kill9()
	if code := codeOf(t, up.Wait(t)); code != ui.ExitNotRunning {
		t.Errorf("exit code %d:\n%s", code, up.Output())
	}
	l.output(t, ui.ExitNotRunning, "status")
	l.output(t, ui.ExitNotRunning, "up", filepath.Join(l.config, "work.conf"))
	l.daemon.Cleanup(t)
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
}

// The host moves to another network while the server, which is known by name,
// moves to another address. The name is asked for outside the tunnel, which
// has the DNS.
func TestNetworkAndNameChange(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.SecondUplink(t)
	names := func(server string) *harness.Process {
		return harness.StartDNS(t, l.Server, harness.InternetDNS, map[string]string{"vpn.example.test": server})
	}
	before := names(harness.ServerIPv4)
	s := l.startServer(t, l.Server)
	file := l.file(t, "work.conf", 0o600, l.section("DNS = "+harness.PrivateDNS+"\n"), s.peer("vpn.example.test", "0.0.0.0/0, ::/0"))
	up := l.start(t, "up", file)
	up.Await(t, "(?m)^work: connected$")
	if got, want := l.endpoint(t), net.JoinHostPort(harness.ServerIPv4, fmt.Sprint(serverPort)); got != want {
		t.Errorf("the endpoint is %s, want %s", got, want)
	}

	before.Kill()
	l.Server.IP(t, "addr del "+harness.InternetDNS+"/32 dev lo")
	names(harness.SecondRouterIPv4)
	s.Kill()
	s.ns = l.Router
	s.start(t)
	// Without dev the kernel would look for the gateway in the tunnel.
	l.Host.IP(t, "route replace default via "+harness.SecondRouterIPv4+" dev h1", "route replace default via "+harness.SecondRouterIPv6+" dev h1")
	up.Await(t, "(?s)the network has changed.*work: connected")
	if got, want := l.endpoint(t), net.JoinHostPort(harness.SecondRouterIPv4, fmt.Sprint(serverPort)); got != want {
		t.Errorf("the endpoint is %s, want %s", got, want)
	}
	l.requireFrom(t, tunnelIPv4, insideIPv4)
	l.requireFrom(t, tunnelIPv6, insideIPv6)
}

// The network goes, and comes back.
func TestNetworkGone(t *testing.T) {
	t.Parallel()
	l, _, up := connected(t)
	l.requireFrom(t, tunnelIPv4, insideIPv4)
	l.Host.IP(t, "route del default via "+harness.RouterIPv4, "route del default via "+harness.RouterIPv6)
	up.Await(t, "the network is gone")
	// Without dev the kernel would look for the gateway in the tunnel.
	l.Host.IP(t, "route add default via "+harness.RouterIPv4+" dev h0", "route add default via "+harness.RouterIPv6+" dev h0")
	up.Await(t, "(?s)the network has changed.*work: connected")
	l.requireFrom(t, tunnelIPv4, insideIPv4)
	up.Signal(unix.SIGTERM)
	if code := codeOf(t, up.Wait(t)); code != 0 {
		t.Errorf("exit code %d:\n%s", code, up.Output())
	}
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
}

// Nothing is routed to a server that is not there, and Ctrl-C is enough.
func TestNoServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := &wgServer{key: newKey(t)}
	file := l.file(t, "work.conf", 0o600, l.section(""), s.peer(harness.ServerIPv4, "0.0.0.0/0"))
	up := l.start(t, "up", file)
	up.Await(t, "no answer from "+harness.ServerIPv4)
	l.requireFrom(t, harness.HostIPv4, insideIPv4)
	up.Signal(unix.SIGINT)
	if code := codeOf(t, up.Wait(t)); code != ui.ExitInterrupted {
		t.Errorf("exit code %d:\n%s", code, up.Output())
	}
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
}

// A rekey passes unnoticed. WireGuard's 120 s cannot be shortened.
func TestRekey(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("takes 4 minutes: set SOAK=1")
	}
	t.Parallel()
	l, _, _ := connected(t)
	first := l.reports(t)[0].WireGuard.Peers[0].LatestHandshake
	handshakes := map[time.Time]bool{first: true}
	for end := time.Now().Add(4 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		l.requireEcho(t, tunnelIPv4, insideIPv4)
		handshakes[l.reports(t)[0].WireGuard.Peers[0].LatestHandshake] = true
	}
	if len(handshakes) < 2 {
		t.Errorf("there was no rekey")
	}
	t.Logf("%d handshakes", len(handshakes))
}

// vpnctl runs it as the user.
func (l *lab) vpnctl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := l.Host.Output(t, harness.Command{Argv: append([]string{harness.Binary(t, "vpnctl"), "--bus", l.bus.Address}, args...), UID: user})
	if err != nil {
		t.Fatalf("vpnctl %v: %v\n%s", args, err, out)
	}
	return out
}

// While one serves, imported files are connected from every user interface.
func TestServe(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.startServer(t, l.Server)
	text := l.section("") + s.peer(harness.ServerIPv4, "203.0.113.0/24")
	for _, name := range []string{"home", "work"} {
		l.output(t, 0, "import", l.file(t, name+".conf", 0o600, text))
	}
	serve := l.start(t, "serve")
	harness.Eventually(t, harness.Timeout, "it serves", func() error {
		out, err := l.Host.Output(t, harness.Command{Argv: []string{harness.Binary(t, "vpnctl"), "--bus", l.bus.Address, "connect", "home"}, UID: user})
		if err != nil || !strings.Contains(out, "home: connected") {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
	l.requireFrom(t, tunnelIPv4, insideIPv4)
	serve.Await(t, "(?m)^home: connected$")
	if out := l.output(t, ui.ExitFailed, "serve"); !strings.Contains(out, "serves already") {
		t.Errorf("a second one said %q", out)
	}

	// up leaves the connection to the one that serves, and replaces home.
	up := l.start(t, "up", "work")
	up.Await(t, "(?m)^work: connected$")
	serve.Await(t, "(?m)^work: connected$")
	l.requireFrom(t, tunnelIPv4, insideIPv4)
	if reports := l.reports(t); len(reports) != 1 || reports[0].Name != "work" || reports[0].WireGuard == nil {
		t.Errorf("status %+v", reports)
	}
	if out := l.output(t, 0, "list"); !strings.Contains(out, "work  connected  ") || !strings.Contains(out, "home  idle ") {
		t.Errorf("list said\n%s", out)
	}
	up.Signal(unix.SIGINT)
	if code := codeOf(t, up.Wait(t)); code != 0 {
		t.Errorf("exit code %d:\n%s", code, up.Output())
	}
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")

	// Sessions leave nothing behind in the process that serves.
	var before int
	for i := range 8 {
		l.vpnctl(t, "connect", "work")
		l.vpnctl(t, "disconnect", "work")
		if i == 2 {
			before = descriptors(t, serve)
		}
	}
	harness.Eventually(t, harness.Timeout, "no descriptor is left", func() error {
		if n := descriptors(t, serve); n > before {
			return fmt.Errorf("%d are open, %d were", n, before)
		}
		return nil
	})

	l.vpnctl(t, "connect", "work")
	serve.Signal(unix.SIGTERM)
	if code := codeOf(t, serve.Wait(t)); code != 0 {
		t.Errorf("exit code %d:\n%s", code, serve.Output())
	}
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
	if got := l.reports(t, "work")[0]; got.State != "idle" {
		t.Errorf("status %+v", got)
	}
}

// sessionBus is a user's bus that can start the app.
const sessionBus = `<busconfig>
  <type>session</type>
  <listen>unix:path=%[1]s/session</listen>
  <servicedir>%[1]s</servicedir>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>`

// Nothing runs, and the user connects: an agent starts the program by its name.
func TestAgentStartsIt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.startServer(t, l.Server)
	l.output(t, 0, "import", l.file(t, "work.conf", 0o600, l.section("")+s.peer(harness.ServerIPv4, "203.0.113.0/24")))
	service := "[D-BUS Service]\nName=" + app + "\nExec=" + strings.Join(l.command(t, "serve").Argv, " ") + "\n"
	l.file(t, "bus.conf", 0o600, fmt.Sprintf(sessionBus, l.config))
	l.file(t, app+".service", 0o600, service)
	env := append(l.command(t).Env, "DBUS_SESSION_BUS_ADDRESS=unix:path="+l.config+"/session")
	bus := l.Host.Start(t, harness.Command{Argv: []string{"dbus-daemon", "--config-file=" + l.config + "/bus.conf", "--nofork", "--nopidfile", "--print-address"}, UID: user, Env: env})
	bus.Await(t, "unix:path=")
	agent := l.Host.Start(t, harness.Command{Argv: []string{harness.Binary(t, "vpnctl"), "--bus", l.bus.Address, "agent"}, UID: user, Env: env})
	agent.Await(t, "Waiting")
	if out := l.vpnctl(t, "connect", "work"); !strings.Contains(out, "work: connected") {
		t.Errorf("vpnctl said\n%s", out)
	}
	l.requireFrom(t, tunnelIPv4, insideIPv4)
	l.output(t, 0, "down", "work")
}

// descriptors is how many a process has open.
func descriptors(t testing.TB, p *harness.Process) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// up serves what another user interface connects in its place.
func TestUpIsReplaced(t *testing.T) {
	t.Parallel()
	l, s, up := connected(t)
	other := l.file(t, "home.conf", 0o600, l.section("")+s.peer(harness.ServerIPv4, "203.0.113.0/24"))
	l.output(t, 0, "import", other)
	l.vpnctl(t, "connect", "home")
	up.Await(t, "work: disconnected, as another VPN was connected")
	time.Sleep(4 * time.Second) // it must not end, however long
	l.requireFrom(t, tunnelIPv4, insideIPv4)
	l.output(t, 0, "down")
	if code := codeOf(t, up.Wait(t)); code != 0 {
		t.Errorf("exit code %d:\n%s", code, up.Output())
	}
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
}

func TestImport(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.startServer(t, l.Server)
	good := l.section("") + s.peer(harness.ServerIPv4, "203.0.113.0/24")
	open := l.file(t, "work.conf", 0o644, good)
	if out := l.output(t, ui.ExitFailed, "up", open); !strings.Contains(out, "is open to every user") || !strings.Contains(out, "chmod 600") {
		t.Errorf("up said %q", out)
	}
	if out := l.output(t, 0, "import", open); !strings.Contains(out, "other users can read the keys in "+open) || !strings.Contains(out, "work: imported") {
		t.Errorf("import said %q", out)
	}
	imported := filepath.Join(l.config, "vpn-wireguard", "work.conf")
	info, err := os.Stat(imported)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("imported as %v (%v)", info, err)
	}
	if folder, err := os.Stat(filepath.Dir(imported)); err != nil || folder.Mode().Perm() != 0o700 {
		t.Errorf("the folder is %v (%v)", folder, err)
	}
	if out := l.vpnctl(t, "list"); !strings.Contains(out, "work") {
		t.Errorf("vpnctl does not know it:\n%s", out)
	}
	if out := l.output(t, ui.ExitFailed, "import", open); !strings.Contains(out, "already") {
		t.Errorf("a second import said %q", out)
	}
	l.output(t, 0, "import", "--force", open)
	l.output(t, 0, "import", "--name", "other", open)

	bad := l.file(t, "bad.conf", 0o600, strings.Replace(good, "[Peer]", "PostUp = iptables -A FORWARD -i %i\n[Peer]", 1))
	if out := l.output(t, ui.ExitFailed, "import", bad); !strings.Contains(out, bad+":4: PostUp: is refused") {
		t.Errorf("import said %q", out)
	}
	if out := l.output(t, ui.ExitUsage, "import", "--name", "b.conf", open); !strings.Contains(out, "would be taken for a file") {
		t.Errorf("import said %q", out)
	}
	l.output(t, ui.ExitNotFound, "import", "nowhere.conf")
	l.output(t, ui.ExitNotFound, "up", "nowhere")
	l.output(t, ui.ExitNotFound, "down", "nowhere")
	l.output(t, ui.ExitNotFound, "status", "nowhere")
	l.output(t, ui.ExitNotFound, "remove", "nowhere")
	l.output(t, ui.ExitUsage, "up")
	if out := l.output(t, 0, "status"); !strings.Contains(out, "Nothing is connected.") {
		t.Errorf("status said %q", out)
	}
	if out := l.output(t, 0, "__complete", "up", ""); !strings.Contains(out, "work\n") || !strings.Contains(out, "other\n") {
		t.Errorf("completion said %q", out)
	}

	up := l.start(t, "up", "work")
	up.Await(t, "(?m)^work: connected$")
	l.output(t, 0, "remove", "work")
	if code := codeOf(t, up.Wait(t)); code != 0 {
		t.Errorf("exit code %d:\n%s", code, up.Output())
	}
	if _, err := os.Stat(imported); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
	if out := l.output(t, 0, "list"); strings.Contains(out, "work") || !strings.Contains(out, "other") {
		t.Errorf("list said\n%s", out)
	}
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
}
