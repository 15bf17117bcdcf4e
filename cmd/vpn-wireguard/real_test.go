package main

import (
	"crypto/ecdh"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// user is who runs the client, with no capability.
const user = harness.Alice

// Addresses that the tunnels of these tests include.
const (
	insideIPv4 = "203.0.113.7"
	insideIPv6 = "2001:db8:113::7"
)

// lab is a host with the daemon and a user, and an internet.
type lab struct {
	*harness.Topology
	bus    *harness.Bus
	daemon *harness.Daemon
	before harness.Snapshot
	key    *ecdh.PrivateKey // the user's
	config string           // XDG_CONFIG_HOME
	run    string           // XDG_RUNTIME_DIR
}

func newLab(t testing.TB, sysctls ...string) *lab {
	t.Helper()
	harness.Require(t, "dbus-daemon", "curl", "ping")
	l := &lab{Topology: harness.NewTopology(t), key: newKey(t)}
	for _, s := range sysctls {
		name, value, _ := strings.Cut(s, "=")
		l.Host.Sysctl(t, name, value)
	}
	harness.StartWeb(t, l.Server, 80)
	l.Server.IP(t, "addr add "+insideIPv6+"/128 dev lo nodad") // a local block is no address yet
	startEcho(t, l.Server, insideIPv4, insideIPv6)
	l.bus = harness.StartBus(t, l.Host, harness.BusOptions{
		Policy: harness.ShippedPolicy, PolicyFiles: []string{harness.LogindPolicy(t)},
	})
	l.before = l.Host.Snapshot(t, "/etc/resolv.conf")
	l.daemon = harness.StartDaemon(t, l.Host, l.bus, harness.DaemonOptions{})
	home := harness.TempDir(t)
	l.config, l.run = filepath.Join(home, "config"), filepath.Join(home, "run")
	for _, dir := range []string{l.config, l.run} {
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, user, user)); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// file writes a file of the user's.
func (l *lab) file(t testing.TB, name string, mode os.FileMode, parts ...string) string {
	t.Helper()
	path := filepath.Join(l.config, name)
	if err := errors.Join(os.WriteFile(path, []byte(strings.Join(parts, "")), 0o600), os.Chown(path, user, user), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

// section is the [Interface] of the user's files.
func (l *lab) section(more string) string {
	return "[Interface]\nPrivateKey = " + inBase64(l.key.Bytes()) + "\nAddress = " + tunnelIPv4 + "/24, " + tunnelIPv6 + "\n" + more
}

func (l *lab) command(t testing.TB, args ...string) harness.Command {
	t.Helper()
	return harness.Command{
		Argv: append([]string{harness.Binary(t, "vpn-wireguard"), "--bus", l.bus.Address}, args...),
		UID:  user,
		Env:  []string{"XDG_CONFIG_HOME=" + l.config, "XDG_RUNTIME_DIR=" + l.run, "HOME=/nonexistent", "DBUS_SESSION_BUS_ADDRESS="},
	}
}

// start runs the program as the user.
func (l *lab) start(t testing.TB, args ...string) *harness.Process {
	t.Helper()
	return l.Host.Start(t, l.command(t, args...))
}

// output runs the program to its end, and wants that exit code.
func (l *lab) output(t testing.TB, code int, args ...string) string {
	t.Helper()
	out, err := l.Host.Output(t, l.command(t, args...))
	if got := codeOf(t, err); got != code {
		t.Fatalf("%v: exit code %d, want %d:\n%s", args, got, code, out)
	}
	return out
}

func codeOf(t testing.TB, err error) int {
	t.Helper()
	var exit interface{ ExitCode() int }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	default:
		t.Fatal(err)
		return 0
	}
}

// reports are what status says.
func (l *lab) reports(t testing.TB, args ...string) []report {
	t.Helper()
	var reports []report
	text := l.output(t, 0, append([]string{"status", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(text), &reports); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	return reports
}

// requireFrom fetches a page with TCP and asks with UDP, and wants that they
// came from an address.
func (l *lab) requireFrom(t testing.TB, want string, hosts ...string) {
	t.Helper()
	for _, host := range hosts {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		if got, err := l.Host.Fetch(t, "http://"+host+"/"); err != nil || got != want {
			t.Errorf("TCP to %s came from %q (%v), want %s", host, got, err, want)
		}
	}
}

func (l *lab) requireEcho(t testing.TB, want, host string) {
	t.Helper()
	network, address := "udp4", host+":7"
	if strings.Contains(host, ":") {
		network, address = "udp6", "["+host+"]:7"
	}
	c, err := l.Host.Dial(network, address, harness.Timeout)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make([]byte, 100)
	n := 0
	for end := time.Now().Add(harness.Timeout); n == 0 && time.Now().Before(end); { // datagrams may be lost
		_, _ = c.Write(make([]byte, 1200))
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		n, _ = c.Read(got)
	}
	if string(got[:n]) != want {
		t.Errorf("UDP to %s came from %q, want %s", host, got[:n], want)
	}
}

// Everything goes through the tunnel, also the address of its own server, with
// which WireGuard speaks beside it; whatever the reverse path filter is.
func TestFullTunnel(t *testing.T) {
	for filter, sysctls := range filters() {
		t.Run(filter, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, sysctls...)
			harness.StartDNS(t, l.Server, harness.PrivateDNS, map[string]string{"intranet.corp.test": "10.98.0.80"})
			s := l.startServer(t, l.Server)
			file := l.file(t, "work.conf", 0o600,
				l.section("DNS = "+harness.PrivateDNS+", corp.test\nFwMark = 51820\n"), s.peer(harness.ServerIPv4, "0.0.0.0/0, ::/0"))
			up := l.start(t, "up", file)
			up.Await(t, "(?m)^work: connected$")
			up.Await(t, "FwMark is ignored")
			requireUnprivileged(t, up.PID())

			clear := l.Clear(t)
			l.requireFrom(t, tunnelIPv4, insideIPv4, "10.98.0.80", "intranet.corp.test", "intranet", harness.ServerIPv4)
			l.requireFrom(t, tunnelIPv6, insideIPv6, "fd98::80", harness.ServerIPv6)
			l.requireEcho(t, tunnelIPv4, insideIPv4)
			l.requireEcho(t, tunnelIPv6, insideIPv6)
			inClear := clear.Count(t, func(p harness.Packet) bool {
				return !p.Sent && p.DstPort != serverPort && p.Protocol != unix.IPPROTO_ICMPV6
			})
			if n := clear.Count(t, harness.To(harness.ServerIPv4+"/32")); n == 0 || inClear != 0 {
				t.Errorf("%d packets to the server, %d others in clear:\n%v", n, inClear, clear)
			}
			l.requireSecrets(t, up)
			requireStatus(t, l, s)

			if out := l.output(t, 0, "down", "work"); !strings.Contains(out, "work: disconnected") {
				t.Errorf("down said %q", out)
			}
			if code := codeOf(t, up.Wait(t)); code != 0 || !strings.Contains(up.Output(), "work: disconnected") {
				t.Errorf("up: exit code %d:\n%s", code, up.Output())
			}
			l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
		})
	}
}

func requireUnprivileged(t testing.TB, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{fmt.Sprintf("\nUid:\t%d\t%[1]d\t%[1]d\t", user), "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
}

// requireSecrets says that the key is nowhere but in the file.
func (l *lab) requireSecrets(t testing.TB, up *harness.Process) {
	t.Helper()
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", up.PID()))
	if err != nil {
		t.Fatal(err)
	}
	objects := l.Host.Run(t, "dbus-send", "--bus="+l.bus.Address, "--print-reply", "--dest=org.vpnprovider1", "/org/vpnprovider1",
		"org.freedesktop.DBus.ObjectManager.GetManagedObjects")
	if !strings.Contains(objects, "work.conf") {
		t.Errorf("the config does not name its file:\n%s", objects)
	}
	for where, text := range map[string]string{
		"the command line": string(cmdline), "the output": up.Output(), "the objects on the bus": objects,
		"the daemon's log": l.daemon.Process().Output(), "the status": l.output(t, 0, "status") + l.output(t, 0, "status", "--json"),
	} {
		for _, key := range []string{inBase64(l.key.Bytes()), hex.EncodeToString(l.key.Bytes())} {
			if strings.Contains(text, key) {
				t.Errorf("the private key is in %s", where)
			}
		}
	}
}

func requireStatus(t testing.TB, l *lab, s *wgServer) {
	t.Helper()
	for _, args := range [][]string{nil, {"work"}} {
		reports := l.reports(t, args...)
		if len(reports) != 1 || reports[0].Name != "work" || reports[0].State != "connected" || reports[0].WireGuard == nil || len(reports[0].WireGuard.Peers) != 1 {
			t.Fatalf("status %+v", reports)
		}
		wg := reports[0].WireGuard
		p := wg.Peers[0]
		if wg.PublicKey != inBase64(l.key.PublicKey().Bytes()) || !strings.HasPrefix(wg.Interface, "vpn") ||
			p.PublicKey.String() != inBase64(s.key.PublicKey().Bytes()) || p.Endpoint != fmt.Sprintf("%s:%d", harness.ServerIPv4, serverPort) ||
			time.Since(p.LatestHandshake) > time.Minute || p.RxBytes < 2000 || p.TxBytes < 2000 {
			t.Errorf("status %+v", wg)
		}
	}
	text := l.output(t, 0, "status")
	for _, want := range []string{"work: connected\n", "\n    latest handshake: ", " received, ", "\n    allowed ips: 0.0.0.0/0, ::/0\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	socket := filepath.Join(l.run, "vpn-wireguard.sock")
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	// Also where the folder lets others in, they are told nothing.
	if err := errors.Join(os.Chmod(l.run, 0o755), os.Chmod(socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	ask := harness.Command{UID: harness.Bob, Argv: []string{"/usr/bin/python3", "-c", `
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
print("told", repr(s.recv(1000)))`, socket}}
	if out, err := l.Host.Output(t, ask); err != nil || !strings.Contains(out, "told b''") {
		t.Errorf("another user got (%v):\n%s", err, out)
	}
}

// filters are the ways in which the kernel looks at where packets come from:
// not at all, strictly, and loosely.
func filters() map[string][]string {
	all := map[string][]string{}
	for _, filter := range []string{"0", "1", "2"} {
		all["rp_filter "+filter] = []string{"net.ipv4.conf.all.rp_filter=" + filter, "net.ipv4.conf.h0.rp_filter=" + filter}
	}
	return all
}

// A split tunnel with two peers: each gets what is its own, the rest is in
// clear.
func TestSplitTunnelWithTwoPeers(t *testing.T) {
	for filter, sysctls := range filters() {
		t.Run(filter, func(t *testing.T) {
			t.Parallel()
			testSplitTunnel(t, newLab(t, sysctls...))
		})
	}
}

func testSplitTunnel(t *testing.T, l *lab) {
	t.Helper()
	one, two := l.startServer(t, l.Server), l.startServer(t, l.Router)
	l.Router.IP(t, "route add local 10.55.0.0/24 dev lo", "route add local fd55::/64 dev lo")
	harness.StartWeb(t, l.Router, 80)
	l.file(t, "split.conf", 0o600, l.section("MTU = 1380\n"),
		one.peer(harness.ServerIPv4, "203.0.113.0/25, 2001:db8:113::/64"), two.peer(harness.RouterIPv6, "10.55.0.0/24, fd55::/64", "PersistentKeepalive = 1"))
	up := l.start(t, "up", filepath.Join(l.config, "split.conf"))
	up.Await(t, "split: connected")
	clear := l.Clear(t)
	l.requireFrom(t, tunnelIPv4, insideIPv4, "10.55.0.1")
	l.requireFrom(t, tunnelIPv6, insideIPv6, "fd55::1")
	l.requireFrom(t, harness.HostIPv4, "203.0.113.200", harness.ServerIPv4)
	l.requireFrom(t, harness.HostIPv6, "2001:db8:113:1::1")
	for _, block := range []string{"203.0.113.0/25", "2001:db8:113::/64", "10.55.0.0/24", "fd55::/64"} {
		if n := clear.Count(t, harness.To(block)); n != 0 {
			t.Errorf("%d packets to %s in clear:\n%v", n, block, clear)
		}
	}
	for _, p := range l.reports(t)[0].WireGuard.Peers {
		if p.RxBytes < 1000 || p.LatestHandshake.IsZero() {
			t.Errorf("a peer was not used: %+v", p)
		}
	}
	up.Signal(unix.SIGINT)
	if code := codeOf(t, up.Wait(t)); code != 0 {
		t.Errorf("exit code %d:\n%s", code, up.Output())
	}
	l.Host.RequireSnapshot(t, l.before, "/etc/resolv.conf")
}
