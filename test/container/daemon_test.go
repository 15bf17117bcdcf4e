package container_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	lanDNS = "192.0.2.53"
	vpnDNS = "10.1.2.3"

	onLAN  = "198.51.100.1" // what the LAN's server says of every name it knows
	behind = "10.8.8.8"     // and the one behind the tunnel
)

// machine is a Debian as people have it, with the daemon installed from the
// project's files, in a LAN with a DNS server.
type machine struct {
	*container.Container
	t    *testing.T
	lan  *harness.Process // its DNS server
	wire *harness.Sniffer // what comes to the LAN
}

// programs are the paths, on this machine, of those that are installed.
type programs struct{ daemon, client string }

func newMachine(t *testing.T, p programs) *machine {
	t.Helper()
	m := startMachine(t, p, container.Options{})
	m.Run(t, "resolvectl", "dns", "eth0", lanDNS)
	return m
}

// newResolvconfMachine has a program resolvconf instead of systemd-resolved,
// and the daemon set up for that as docs/service.md says.
func newResolvconfMachine(t *testing.T, p programs, name string) *machine {
	t.Helper()
	m := startMachine(t, p, container.Options{Packages: []string{name}, Without: []string{"systemd-resolved", "libnss-resolve"}})
	m.Run(t, "sh", "-c", "echo nameserver "+lanDNS+" | resolvconf -a eth0.dhcp")
	writes := "/etc /run/resolvconf"
	if name == "resolvconf" {
		m.Run(t, "ln", "-sfn", "/run/resolvconf/resolv.conf", "/etc/resolv.conf")
		writes = "/run/resolvconf"
	}
	for _, unit := range []string{"vpnproviderd", "vpnproviderd-cleanup"} {
		m.WriteFile(t, "/etc/systemd/system/"+unit+".service.d/resolvconf.conf", "[Service]\nUser=root\nGroup=root\nReadWritePaths="+writes+"\n", 0o644)
	}
	m.Run(t, "systemctl", "daemon-reload")
	return m
}

func startMachine(t *testing.T, p programs, opts container.Options) *machine {
	t.Helper()
	m := startBare(t, opts)
	m.install(p)
	return m
}

// startBare is a machine without the daemon.
func startBare(t *testing.T, opts container.Options) *machine {
	t.Helper()
	t.Parallel()
	m := &machine{Container: container.Start(t, opts), t: t}
	lan := harness.NewNamespace(t, "lan")
	m.Connect(t, "eth0", lan, "lan0")
	lan.IP(t, "addr add 192.0.2.1/24 dev lan0")
	m.wire = lan.Sniff(t, "lan0")
	m.lan = harness.StartDNS(t, lan, lanDNS, map[string]string{"www.example.org": onLAN, "www.corp.example": onLAN})
	m.Run(t, "ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	m.Run(t, "ip", "route", "add", "default", "via", "192.0.2.1")
	return m
}

// install puts the files where packages have them, and makes them known as
// their scripts do.
func (m *machine) install(p programs) {
	m.t.Helper()
	m.CopyFile(m.t, p.daemon, "/usr/sbin/vpnproviderd", 0o755)
	m.CopyFile(m.t, p.client, "/opt/testclient", 0o755)
	root := harness.ModuleRoot(m.t)
	for from, to := range map[string]string{
		"systemd/vpnproviderd.service":         "/usr/lib/systemd/system/vpnproviderd.service",
		"systemd/vpnproviderd.socket":          "/usr/lib/systemd/system/vpnproviderd.socket",
		"systemd/vpnproviderd-cleanup.service": "/usr/lib/systemd/system/vpnproviderd-cleanup.service",
		"systemd/vpnprovider.sysusers.conf":    "/usr/lib/sysusers.d/vpnprovider.conf",
		"systemd/vpnprovider.tmpfiles.conf":    "/usr/lib/tmpfiles.d/vpnprovider.conf",
		"dbus-policy/org.vpnprovider1.conf":    "/usr/share/dbus-1/system.d/org.vpnprovider1.conf",
		"dbus-policy/org.vpnprovider1.service": "/usr/share/dbus-1/system-services/org.vpnprovider1.service",
		"dbus-policy/org.vpnprovider1.policy":  "/usr/share/polkit-1/actions/org.vpnprovider1.policy",
		"dbus-policy/49-vpnproviderd.rules":    "/usr/share/polkit-1/rules.d/49-vpnproviderd.rules",
	} {
		m.CopyFile(m.t, filepath.Join(root, from), to, 0o644)
	}
	// There is nobody to type passwords.
	m.WriteFile(m.t, "/etc/polkit-1/rules.d/10-test.rules", `polkit.addRule(function (action, subject) {
    if (action.id.indexOf("org.vpnprovider1.") == 0 && subject.user == "alice") { return polkit.Result.YES; }
});
`, 0o644)
	m.settle()
}

// settle makes installed files known.
func (m *machine) settle() {
	m.t.Helper()
	m.Run(m.t, "systemd-sysusers")
	m.Run(m.t, "systemd-tmpfiles", "--create", "vpnprovider.conf")
	m.Run(m.t, "systemctl", "daemon-reload")
	m.Run(m.t, "systemctl", "reload", "dbus")
}

// client starts the app as Alice, who logs in as by ssh, and waits for its
// session.
func (m *machine) client(args ...string) *container.Process {
	m.t.Helper()
	p := m.Start(m.t, container.Command{Argv: append([]string{"/opt/testclient"}, args...), User: container.Alice})
	p.Await(m.t, "session /")
	return p
}

// tell gives the app parameters, and waits for an answer that begins so.
func (m *machine) tell(p *container.Process, want string, params client.Parameters) {
	m.t.Helper()
	line, err := json.Marshal(params)
	if err != nil {
		m.t.Fatal(err)
	}
	got := ""
	for range 5 {
		got = m.answer(p, string(line), "applied", "refused: ")
		// polkitd may lose a wake-up, and resolved, which asks it, answers
		// nobody for 15 s.
		if strings.HasPrefix(got, want) || !strings.HasPrefix(got, "refused: "+wire.ErrTimeout) {
			break
		}
		m.t.Log(got)
	}
	if !strings.HasPrefix(got, want) {
		m.t.Fatalf("the app was told %q, want %q", got, want)
	}
}

// answer gives the app a line and waits for one that begins in one of the ways.
func (m *machine) answer(p *container.Process, line string, begin ...string) string {
	m.t.Helper()
	before := len(p.Output())
	if _, err := fmt.Fprintln(p, line); err != nil {
		m.t.Fatal(err)
	}
	var found string
	harness.Eventually(m.t, harness.Timeout, "the app answers", func() error {
		out := p.Output()
		for text := range strings.Lines(out[before:]) {
			for _, b := range begin {
				if strings.HasPrefix(text, b) && strings.HasSuffix(text, "\n") {
					found = strings.TrimSpace(text)
					return nil
				}
			}
		}
		return errors.New(out)
	})
	return found
}

// disconnect ends the app's session.
func (m *machine) disconnect(p *container.Process) {
	m.t.Helper()
	if _, err := fmt.Fprintln(p, "disconnect"); err != nil {
		m.t.Fatal(err)
	}
	p.Await(m.t, "disconnected\n")
}

func (m *machine) lookup(name, want string) {
	m.t.Helper()
	out, _ := m.Output(container.Command{Argv: []string{"getent", "ahostsv4", name}})
	if got, _, _ := strings.Cut(out, " "); got != want {
		status, _ := m.Output(container.Command{Argv: []string{"sh", "-c", "cat /etc/resolv.conf; resolvectl status --no-pager"}})
		m.t.Errorf("%s is %q, want %q\n%s", name, got, want, status)
	}
}

// asked says whether the LAN's server was asked for a name.
func (m *machine) asked(name string) bool {
	return strings.Contains(m.lan.Output(), "] "+name+" from")
}

// requireNothing wants no trace of a tunnel.
func (m *machine) requireNothing() {
	m.t.Helper()
	harness.Eventually(m.t, harness.Timeout, "nothing is left", func() error {
		out := m.Run(m.t, "sh", "-c", "resolvectl dns; resolvectl domain; ip -o link; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all")
		for _, trace := range []string{vpnDNS, "~.", "corp.example", "vpn0", "4650:", " proto 86 "} {
			if strings.Contains(out, trace) {
				return errors.New(out)
			}
		}
		return nil
	})
}

func fullTunnel() client.Parameters {
	return client.Parameters{
		Addresses:     []netip.Prefix{netip.MustParsePrefix("10.1.0.2/32")},
		InclusionList: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
		DNSServers:    []netip.Addr{netip.MustParseAddr(vpnDNS)},
		DomainSearch:  []string{"corp.example"},
	}
}

// TestDaemon has the daemon on Debian machines with systemd-resolved.
func TestDaemon(t *testing.T) {
	harness.Require(t, "systemd-nspawn", "mmdebstrap")
	p := programs{
		daemon: container.Build(t, "./cmd/vpnproviderd"),
		client: container.Build(t, "./test/container/testclient"),
	}
	t.Run("main job", func(t *testing.T) { testMainJob(t, newMachine(t, p)) })
	t.Run("killed", func(t *testing.T) { testKilled(t, newMachine(t, p)) })
	t.Run("no polkit rule", func(t *testing.T) { testNoPolkitRule(t, newMachine(t, p)) })
	t.Run("activation", func(t *testing.T) { testActivation(t, newMachine(t, p)) })
	t.Run("resolved hangs", func(t *testing.T) { testResolvedHangs(t, newMachine(t, p)) })
	for _, name := range []string{"openresolv", "resolvconf"} {
		t.Run(name, func(t *testing.T) { testResolvconf(t, newResolvconfMachine(t, p, name)) })
	}
}

// testMainJob: an ordinary user's app has the daemon started, and all names
// resolved through its tunnel, until it disconnects.
func testMainJob(t *testing.T, m *machine) {
	t.Helper()
	if out, _ := m.Output(container.Command{Argv: []string{"systemctl", "is-active", "vpnproviderd"}}); out != "inactive\n" {
		t.Fatalf("before anybody calls the daemon is %q", out)
	}
	m.lookup("www.example.org", onLAN)
	m.askLAN("before", true)
	resolvConf := m.Run(t, "sh", "-c", "ls -l /etc/resolv.conf; cat /etc/resolv.conf")

	app := m.client()
	if got := m.Run(t, "systemctl", "show", "vpnproviderd", "-P", "User", "-P", "ActiveState"); got != "vpnprovider\nactive\n" && got != "active\nvpnprovider\n" {
		t.Errorf("the daemon runs as %q", got)
	}
	m.tell(app, "applied", fullTunnel())
	if got := m.Run(t, "resolvectl", "dns", "vpn0"); !strings.Contains(got, vpnDNS) {
		t.Errorf("resolvectl: %s", got)
	}
	m.lookup("www.example.com", behind)
	m.lookup("www", behind)
	m.askLAN("connected", false)
	for _, want := range []string{"-LLMNR", "-mDNS", "+DefaultRoute"} {
		if got := m.Run(t, "resolvectl", "status", "--no-pager", "vpn0"); !strings.Contains(got, want) {
			t.Errorf("not %s:\n%s", want, got)
		}
	}

	t.Run("restarted resolved", func(t *testing.T) {
		// Its memory of the links is taken away, too.
		m.Run(t, "sh", "-c", "systemctl stop systemd-resolved; rm -r /run/systemd/resolve/netif; systemctl start systemd-resolved; resolvectl dns eth0 "+lanDNS)
		harness.Eventually(t, harness.Timeout, "the DNS is back", func() error {
			if out := m.Run(t, "resolvectl", "status", "--no-pager", "vpn0"); !strings.Contains(out, vpnDNS) || !strings.Contains(out, "~.") {
				return errors.New(out)
			}
			return nil
		})
		m.lookup("again.example.com", behind)
	})
	for _, name := range []string{"www.example.com", "www.corp.example", "again.example.com"} {
		if m.asked(name) {
			t.Errorf("the LAN was asked for %s", name)
		}
	}

	t.Run("split DNS", func(t *testing.T) {
		p := fullTunnel()
		p.DomainSearch, p.MatchDomains = nil, []string{"corp.example"}
		m.tell(app, "applied", p)
		m.lookup("www.corp.example", behind)
		m.lookup("www.example.org", onLAN)
	})

	m.disconnect(app)
	m.requireNothing()
	m.lookup("www.example.org", onLAN)
	m.askLAN("after", true)
	if got := m.Run(t, "sh", "-c", "ls -l /etc/resolv.conf; cat /etc/resolv.conf"); got != resolvConf {
		t.Errorf("resolv.conf was\n%s\nand is\n%s", resolvConf, got)
	}
}

// askLAN looks up what resolved takes to the LAN whatever the routes say: a single
// name, which it asks of everybody there, and one of a domain that the LAN's DHCP
// server claims. Whether the LAN hears of either is as wanted.
func (m *machine) askLAN(when string, want bool) {
	m.t.Helper()
	m.Run(m.t, "sh", "-c", "resolvectl llmnr eth0 yes; resolvectl domain eth0 '~lan.example'; resolvectl flush-caches")
	everybody := func(p harness.Packet) bool { return p.DstPort == 5355 }
	server := func(p harness.Packet) bool { return p.DstPort == 53 && p.Dst.String() == lanDNS }
	before := [2]int{m.wire.Count(m.t, everybody), m.wire.Count(m.t, server)}
	for _, name := range []string{"printer", "printer.lan.example"} {
		// What it finds does not matter.
		_, _ = m.Output(container.Command{Argv: []string{"timeout", "8", "resolvectl", "query", name}})
	}
	heard := [2]int{m.wire.Count(m.t, everybody) - before[0], m.wire.Count(m.t, server) - before[1]}
	m.t.Logf("%s: the LAN heard %d questions to everybody, its server %d", when, heard[0], heard[1])
	if (heard[0] > 0) != want || (heard[1] > 0) != want {
		m.t.Errorf("%s: the LAN heard %d questions to everybody, its server %d", when, heard[0], heard[1])
	}
	m.Run(m.t, "sh", "-c", "resolvectl llmnr eth0 no; resolvectl domain eth0 ''")
}

// testKilled: what was set goes with the link, when the daemon is killed and the
// app with it.
func testKilled(t *testing.T, m *machine) {
	t.Helper()
	app := m.client()
	m.tell(app, "applied", fullTunnel())
	m.kill()
	m.requireNothing()
	m.lookup("www.example.org", onLAN)
}

// kill kills the daemon and the app.
func (m *machine) kill() {
	m.t.Helper()
	m.Run(m.t, "sh", "-c", "systemctl kill --signal=KILL vpnproviderd; pkill -KILL -x testclient")
}

// testNoPolkitRule: the app is told what is missing, and nothing of
// what it asked for is done.
func testNoPolkitRule(t *testing.T, m *machine) {
	t.Helper()
	m.Run(t, "rm", "/usr/share/polkit-1/rules.d/49-vpnproviderd.rules")
	app := m.client()
	m.tell(app, "refused: ", fullTunnel())
	app.Await(t, "49-vpnproviderd.rules")
	if out := m.Run(t, "sh", "-c", "ip rule; ip route show table all; resolvectl dns"); strings.Contains(out, "4650:") || strings.Contains(out, vpnDNS) || strings.Contains(out, "proto 86") {
		t.Errorf("not undone:\n%s", out)
	}
	noDNS := fullTunnel()
	noDNS.DNSServers = nil
	m.tell(app, "applied", noDNS)
	m.disconnect(app)
	m.requireNothing()
}

// testResolvedHangs: the app is told in time, and disconnecting does not
// wait for ever.
func testResolvedHangs(t *testing.T, m *machine) {
	t.Helper()
	app := m.client()
	m.tell(app, "applied", fullTunnel())
	m.Run(t, "systemctl", "kill", "--signal=STOP", "systemd-resolved")
	other := fullTunnel()
	other.DomainSearch = []string{"other.example"}
	m.tell(app, "refused: org.vpnprovider1.Error.Timeout: ", other)
	m.disconnect(app)
	m.Run(t, "systemctl", "kill", "--signal=CONT", "systemd-resolved")
	m.requireNothing()
	m.lookup("www.example.org", onLAN)
}

// testResolvconf: the main job, and a crash, where a program resolvconf makes
// resolv.conf.
func testResolvconf(t *testing.T, m *machine) {
	t.Helper()
	look := func() string {
		return m.Run(t, "sh", "-c", "ls -l /etc/resolv.conf | cut -d' ' -f 1-5,9-; cat /etc/resolv.conf")
	}
	before := look()
	m.lookup("www.example.org", onLAN)
	app := m.client()
	m.tell(app, "applied", fullTunnel())
	m.lookup("www.example.org", behind)
	m.lookup("www", behind)
	m.disconnect(app)
	m.lookup("www.example.org", onLAN)
	if after := look(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}

	app = m.client()
	m.tell(app, "applied", fullTunnel())
	m.kill()
	harness.Eventually(t, harness.Timeout, "resolv.conf is what it was", func() error {
		if after := look(); after != before {
			return errors.New(after)
		}
		return nil
	})
}
