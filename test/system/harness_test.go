package system

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// These tests show that each helper does on its own what the other tests rely
// on: a test of the daemon that fails should not be about the harness.

func TestTopology(t *testing.T) {
	t.Parallel()
	harness.Require(t, "ip", "ping", "curl")
	before := hostState(t)
	top := harness.NewTopology(t)
	clear := top.Clear(t)
	web := harness.StartWeb(t, top.Server, 80)

	for _, dst := range []string{harness.ServerIPv4, harness.ServerIPv6, "203.0.113.9", "2001:db8:113::9", "10.98.1.2", "fd98::7"} {
		top.Host.AwaitAnswer(t, dst)
	}
	for url, want := range map[string]string{
		"http://203.0.113.9/":       harness.HostIPv4,
		"http://[2001:db8:113::9]/": harness.HostIPv6,
	} {
		if got, err := top.Host.Fetch(t, url); err != nil || got != want {
			t.Errorf("%s came from %q (%v), want %s", url, got, err, want)
		}
	}
	if got := web.Remotes(); len(got) != 2 {
		t.Errorf("the server saw requests from %v, want 2", got)
	}

	before98 := clear.Count(t, harness.To("10.98.0.0/16"))
	top.Host.Run(t, "ping", "-n", "-c2", "-i0.05", "-W20", "10.98.1.2")
	if n := clear.Count(t, harness.To("10.98.0.0/16")) - before98; before98 < 1 || n != 2 {
		t.Errorf("%d packets to the private block, want the pings:\n%v", n, clear)
	}
	if n := clear.Count(t, func(p harness.Packet) bool { return harness.To(harness.InternetIPv6)(p) && p.DstPort == 80 }); n < 4 {
		t.Errorf("%d packets of the page over IPv6:\n%v", n, clear)
	}
	if n := clear.Count(t, harness.To("192.0.2.0/24")); n != 0 {
		t.Errorf("%d packets to nowhere:\n%v", n, clear)
	}

	top.SecondUplink(t)
	top.Host.IP(t, "route replace default via "+harness.SecondRouterIPv4)
	if got, err := top.Host.Fetch(t, "http://203.0.113.9/"); err != nil || got != harness.SecondIPv4 {
		t.Errorf("over the second uplink the request came from %q (%v)", got, err)
	}
	if after := hostState(t); after != before {
		t.Errorf("the machine's own network changed\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// hostState is the network of the machine that the tests run on, without what
// runs down.
func hostState(t *testing.T) string {
	t.Helper()
	const script = "{ ip -o link; ip -4 -o addr; ip rule; ip -6 rule; ip route show table all; cat /etc/resolv.conf; } | sed -E 's/ (valid_lft|preferred_lft|expires) [^ ]+//g'"
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func TestSniffer(t *testing.T) {
	t.Parallel()
	top := harness.NewTopology(t)
	clear := top.Clear(t)
	const n = 5000
	conn, err := top.Host.Dial("udp", "203.0.113.1:9", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range n {
		// Nothing listens there: the answer is an error on the socket.
		_, _ = conn.Write([]byte("x"))
	}
	// A write that was refused with such an answer sent nothing.
	sent := strings.Fields(strings.TrimSpace(lastLine(top.Host.Run(t, "sh", "-c", "grep ^Udp: /proc/net/snmp"))))[4]
	harness.Eventually(t, harness.Timeout, "all are counted", func() error {
		count := clear.Count(t, func(p harness.Packet) bool { return harness.To(harness.InternetIPv4)(p) && p.DstPort == 9 })
		if fmt.Sprint(count) != sent || count < n/2 {
			return fmt.Errorf("counted %d packets, the kernel sent %s of %d", count, sent, n)
		}
		return nil
	})
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func TestHostFiles(t *testing.T) {
	t.Parallel()
	host := harness.NewHost(t, "host")
	machine, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	// As a program that replaces the file does it.
	host.Run(t, "sh", "-c", "echo nameserver 192.0.2.1 > /etc/resolv.conf.new && mv /etc/resolv.conf.new /etc/resolv.conf && touch /run/x")
	if got := host.ReadFile(t, "/etc/resolv.conf"); got != "nameserver 192.0.2.1\n" {
		t.Errorf("the host's resolv.conf is %q", got)
	}
	if now, err := os.ReadFile("/etc/resolv.conf"); err != nil || !bytes.Equal(now, machine) {
		t.Errorf("the machine's resolv.conf changed: %v", err)
	}
	if got, err := os.ReadFile(host.Root() + "/etc/resolv.conf"); err != nil || string(got) != "nameserver 192.0.2.1\n" {
		t.Errorf("through Root the host's resolv.conf is %q (%v)", got, err)
	}
	if got := host.Run(t, "ls", "/sys/class/net"); got != "lo\n" {
		t.Errorf("/sys shows the links %q", got)
	}

	out, err := host.Output(t, harness.Command{Argv: []string{"sh", "-c", "id; grep -E 'Cap(Eff|Prm)|Groups' /proc/self/status; cat > /etc/x"}, UID: harness.Alice, Stdin: "x"})
	if err == nil {
		t.Error("an ordinary user wrote to /etc")
	}
	for _, want := range []string{"uid=4201(alice) gid=4201(alice)", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "Groups:\t \n"} {
		if !strings.Contains(out, want) {
			t.Errorf("a process of alice has no %q:\n%s", want, out)
		}
	}
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	harness.Require(t, "nft")
	host := harness.NewTopology(t).Host
	const resolv = "/etc/resolv.conf"
	before := host.Snapshot(t, resolv)
	host.RequireSnapshot(t, before, resolv)
	for name, c := range map[string]struct{ do, undo string }{
		"link":     {"ip link add x0 type bridge", "ip link del x0"},
		"address":  {"ip addr add 10.0.0.1/32 dev h0", "ip addr del 10.0.0.1/32 dev h0"},
		"route":    {"ip route add throw 10.0.0.0/8 table 99", "ip route del throw 10.0.0.0/8 table 99"},
		"route v6": {"ip -6 route add unreachable default metric 4294967294 table 99", "ip -6 route del unreachable default metric 4294967294 table 99"},
		"rule":     {"ip rule add prio 4650 not fwmark 0x56000000/0xfe000000 lookup 99 protocol 86", "ip rule del prio 4650"},
		"rule v6":  {"ip -6 rule add prio 4650 lookup 99", "ip -6 rule del prio 4650"},
		"nftables": {"nft add table inet x", "nft delete table inet x"},
		"knob":     {"echo 1 > /proc/sys/net/ipv4/conf/h0/src_valid_mark", "echo 0 > /proc/sys/net/ipv4/conf/h0/src_valid_mark"},
		"mtu":      {"ip link set h0 mtu 1400", "ip link set h0 mtu 1500"},
		"DNS":      {"cp -p " + resolv + " /run/saved; echo >> " + resolv, "cat /run/saved > " + resolv},
		"mode":     {"chmod 600 " + resolv, "chmod 644 " + resolv},
	} {
		host.Run(t, "sh", "-c", c.do)
		if before.Diff(host.Snapshot(t, resolv)) == "" {
			t.Errorf("a changed %s is not seen", name)
		}
		host.Run(t, "sh", "-c", c.undo)
		if diff := before.Diff(host.Snapshot(t, resolv)); diff != "" {
			t.Errorf("%s: after the undo:\n%s", name, diff)
		}
	}
}

func TestBus(t *testing.T) {
	t.Parallel()
	host := harness.NewHost(t, "host")
	bus := harness.StartBus(t, host, harness.BusOptions{})
	root, alice := bus.Dial(t), bus.DialAs(t, harness.Alice)

	var uid uint32
	call := root.BusObject().Call("org.freedesktop.DBus.GetConnectionUnixUser", 0, alice.Names()[0])
	if err := call.Store(&uid); err != nil || uid != harness.Alice {
		t.Errorf("the bus takes alice for %d (%v)", uid, err)
	}
	if reply, err := alice.RequestName("org.example.Open", 0); err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Errorf("on an open bus alice cannot own a name: %v %v", reply, err)
	}
	if !alice.SupportsUnixFDs() {
		t.Error("no descriptors can be passed")
	}
	// A program that looks for the system bus finds this one.
	out, err := host.Output(t, harness.Command{Argv: []string{"busctl", "--system", "--no-pager", "list", "--no-legend"}, UID: harness.Bob})
	if err != nil || !strings.Contains(out, "org.example.Open") {
		t.Errorf("busctl on the host: %v\n%s", err, out)
	}

	bus.Kill(t)
	bus.Start(t)
	if _, err := bus.Dial(t).RequestName("org.example.Again", 0); err != nil {
		t.Errorf("after a restart of the bus: %v", err)
	}
}

func TestBusPolicy(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(filepath.Join(harness.ModuleRoot(t), "dbus-policy", "org.vpnprovider1.conf")); err != nil {
		t.Fatal(err)
	}
	bus := harness.StartBus(t, harness.NewHost(t, "host"), harness.BusOptions{Policy: harness.ShippedPolicy})
	if _, err := bus.DialAs(t, harness.Alice).RequestName("org.vpnprovider1", 0); err == nil {
		t.Error("an ordinary user may own the daemon's name")
	}
	if reply, err := bus.Dial(t).RequestName("org.vpnprovider1", 0); err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Errorf("root may not own the name in a test: %v %v", reply, err)
	}
}

// TestProcessesEndWithTheNamespace checks that nothing outlives a test, also
// where a program leaves children behind.
func TestProcessesEndWithTheNamespace(t *testing.T) {
	t.Parallel()
	var child int
	t.Run("inner", func(t *testing.T) {
		ns := harness.NewNamespace(t, "short")
		out := ns.Run(t, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
		if _, err := fmt.Sscan(out, &child); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(child, 0); err != nil {
			t.Fatalf("the child does not run: %v", err)
		}
	})
	harness.Eventually(t, harness.Timeout, "the child is gone", func() error {
		if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child)); err == nil && !strings.Contains(string(state), ") Z ") {
			return fmt.Errorf("process %d is there: %s", child, state)
		}
		return nil
	})
}

// TestDaemonHelper stands in for the daemon with a script: ready, killed,
// started again, stopped.
func TestDaemonHelper(t *testing.T) {
	t.Parallel()
	host := harness.NewHost(t, "host")
	bus := harness.StartBus(t, host, harness.BusOptions{})
	program := filepath.Join(harness.TempDir(t), "standin")
	script := `#!/bin/sh
case " $* " in *" --cleanup "*) rm "$5"/left; exit 0;; esac
trap 'echo stopped; exit 0' TERM
echo "arguments: $*"
[ "$3" = --state-dir ] && touch "$4"/left
systemd-notify --ready --status="two words" || exit 3
while :; do sleep 0.05; done
`
	script = strings.ReplaceAll(script, `"$5"`, `"$4"`)
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := harness.StartDaemon(t, host, bus, harness.DaemonOptions{Program: program, Args: []string{"--log-level", "debug"}})
	first := d.Process().PID()
	d.Kill9()
	d.Start(t)
	if d.Process().PID() == first {
		t.Error("it is the same process")
	}
	if got := d.Notified(); len(got) < 2 || got[len(got)-1] != "STATUS=two words" && got[len(got)-2] != "STATUS=two words" {
		t.Errorf("notified %q", got)
	}
	d.Process().Await(t, `--bus unix:path=\S+ .*--log-level debug`)
	d.Stop(t)
	d.Process().Await(t, "stopped")
	if _, err := os.Stat(filepath.Join(d.StateDir, "left")); err != nil {
		t.Error(err)
	}
	d.Cleanup(t)
	if _, err := os.Stat(filepath.Join(d.StateDir, "left")); err == nil {
		t.Error("--cleanup was not run with the daemon's own arguments")
	}
}
