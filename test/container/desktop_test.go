package container_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// TestDesktop has what `make install` installs on a machine with
// systemd-resolved and polkit, and an example app; ordinary people use it, as the
// documents say.
func TestDesktop(t *testing.T) {
	harness.Require(t, "systemd-nspawn", "mmdebstrap", "make")
	installed := filepath.Join(harness.TempDir(t), "installed")
	install(t, "install", installed)
	mirror := container.Build(t, "./docs/examples/mirror")
	m := startBare(t, container.Options{})
	m.Run(t, "resolvectl", "dns", "eth0", lanDNS)
	if out, err := exec.Command("cp", "-a", installed+"/.", m.Root()+"/").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	install(t, "uninstall", installed)
	if out, err := exec.Command("find", installed, "!", "-type", "d").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("after make uninstall: %v\n%s", err, out)
	}
	m.settle()
	m.CopyFile(t, mirror, "/opt/mirror", 0o755)
	m.CopyFile(t, container.Build(t, "./test/container/testclient"), "/opt/testclient", 0o755)
	m.Run(t, "sh", "-c", "echo 'alice:"+alicePassword+"' | chpasswd")
	for _, step := range []struct {
		name string
		run  func(*testing.T, *machine)
	}{
		{"first connect", testFirstConnect},
		{"clients ask", testClientsAsk},
		{"known apps", testKnownApps},
		{"over ssh", testOverSSH},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(t, m) })
	}
}

// install makes a target that puts files below a folder, or takes them away.
func install(t *testing.T, target, to string) {
	t.Helper()
	cmd := exec.Command("make", target, "DESTDIR="+to, "BIN="+filepath.Join(harness.TempDir(t), "bin"))
	cmd.Dir = harness.ModuleRoot(t)
	for _, v := range os.Environ() {
		// A make that runs this test is no business of the one that it runs.
		if !strings.HasPrefix(v, "MAKE") && !strings.HasPrefix(v, "MFLAGS=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v\n%s", target, err, out)
	}
}

// vpnctl runs it in a new login session. It has no terminal.
func (m *machine) vpnctl(how container.Command, args ...string) (string, error) {
	m.t.Helper()
	how.Argv = append(how.Argv, append([]string{"/usr/bin/vpnctl"}, args...)...)
	return m.Output(how)
}

// awaitConfig asks as root, so that no other login session is in front of the
// app's before it has registered.
func (m *machine) awaitConfig(name string) {
	m.t.Helper()
	harness.Eventually(m.t, harness.Timeout, "the app has made its config", func() error {
		if out := m.Run(m.t, "/usr/bin/vpnctl", "list"); !strings.Contains(out, name) {
			return errors.New(out)
		}
		return nil
	})
}

// testFirstConnect: the app's user is asked for her password, on her terminal,
// and not any more the next time.
func testFirstConnect(t *testing.T, m *machine) {
	t.Helper()
	app := seated(container.Alice)
	app.Argv = []string{"/opt/mirror"}
	m.Start(t, app)
	m.awaitConfig("Mirror")
	out, err := m.vpnctl(seated(container.Alice), "connect", "Mirror")
	for _, want := range []string{"com.example.Mirror", "has no consent", "first connect is allowed with a password"} {
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 4 || !strings.Contains(out, want) {
			t.Errorf("without a terminal: %v, not %q in\n%s", err, want, out)
		}
	}
	if got := m.typing("vpnctl connect Mirror", "a wrong password"); !strings.Contains(got, "com.example.Mirror") || !strings.Contains(got, "exit 4\n") {
		t.Errorf("with a wrong password:\n%s", got)
	}
	if got := m.typing("vpnctl connect Mirror", alicePassword); !strings.Contains(got, "Mirror: connected\nexit 0\n") {
		t.Fatalf("with her password:\n%s", got)
	}
	m.Run(t, "ping", "-c1", "-W20", "198.18.0.7")
	pid := strings.TrimSpace(m.Run(t, "systemctl", "show", "--value", "-p", "MainPID", "vpnproviderd"))
	status := m.Run(t, "cat", "/proc/"+pid+"/status")
	for _, want := range []string{"CapEff:\t0000000000001000", "CapPrm:\t0000000000001000", "CapBnd:\t0000000000001000", "NoNewPrivs:\t1"} {
		if !strings.Contains(status, want+"\n") {
			t.Errorf("the daemon has not %q:\n%s", want, status)
		}
	}
	if got := strings.TrimSpace(m.Run(t, "stat", "-c", "%U", "/proc/"+pid)); got != "vpnprovider" {
		t.Errorf("the daemon is %s's", got)
	}
	for _, args := range [][]string{{"disconnect", "Mirror"}, {"connect", "Mirror"}, {"disconnect"}, {"forget", "com.example.Mirror"}} {
		if out, err := m.vpnctl(seated(container.Alice), args...); err != nil {
			t.Errorf("vpnctl %q: %v\n%s", args, err, out)
		}
	}
	m.requireNothing()
}

// printed is where typing has the output.
const printed = "/tmp/printed"

// typing runs a command at the screen on a terminal, types a password when it
// is asked for, and does what is to be done meanwhile. It returns what was
// printed and the exit code, behind the question. (script may lose what is
// printed last, and then never ends.)
func (m *machine) typing(command, password string, meanwhile ...func()) string {
	m.t.Helper()
	how := seated(container.Alice)
	how.Argv = []string{"script", "-qec", command + " >" + printed + "; echo exit $? >>" + printed + "; kill -KILL $PPID", "/dev/null"}
	p := m.Start(m.t, how)
	p.Await(m.t, "Password:")
	// Then the agent throws away what was typed before, and has nothing echoed.
	harness.Eventually(m.t, harness.Timeout, "the agent reads", func() error {
		if out := m.Run(m.t, "sh", "-c", "stty -a -F /dev/$(ps -o tty= -C pkttyagent) 2>&1 || :"); !strings.Contains(out, " -echo ") {
			return errors.New(out)
		}
		return nil
	})
	if _, err := fmt.Fprintf(p, "%s\n", password); err != nil {
		m.t.Fatal(err)
	}
	for _, do := range meanwhile {
		do()
	}
	var out string
	harness.Eventually(m.t, harness.Timeout, "it ends", func() error {
		if out = m.ReadFile(m.t, printed); !strings.Contains(out, "exit ") {
			return errors.New(out + p.Output())
		}
		return nil
	})
	m.Run(m.t, "rm", printed)
	return p.Output() + out
}

// testClientsAsk: the clients that come with the daemon have their user's
// password asked for on the terminal, as vpnctl does.
func testClientsAsk(t *testing.T, m *machine) {
	t.Helper()
	const file = "/tmp/work.conf" // of a peer that is waited for: the tunnel is up at once
	m.WriteFile(t, file, `[Interface]
PrivateKey = qOrRbvAo2sEIrGI+w97dl3FBEVlvZ1DA4AnURNTFK20=
Address = 10.66.0.2/24
[Peer]
PublicKey = DsUxJIDCuNZmkl7Bl8HdaI9dB0pfQCoCR1yd7QqMQXo=
AllowedIPs = 198.18.0.0/24
`, 0o600)
	m.Run(t, "chown", container.Alice, file)
	disconnect := func() {
		harness.Eventually(t, harness.Timeout, "it is connected", func() error {
			if out := m.ReadFile(t, printed); !strings.Contains(out, "work: connected\n") {
				return errors.New(out)
			}
			return nil
		})
		if out, err := m.vpnctl(seated(container.Alice), "disconnect", "work"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
	got := m.typing("vpn-wireguard up "+file, alicePassword, disconnect)
	if !strings.Contains(got, "org.vpnprovider.WireGuard") || !strings.Contains(got, "work: connected\n") || !strings.Contains(got, "exit 0\n") {
		t.Errorf("vpn-wireguard:\n%s", got)
	}
	got = m.typing("vpn-openconnect --openconnect /bin/true vpn.example.com", alicePassword)
	if !strings.Contains(got, "org.vpnprovider.OpenConnect") || !strings.Contains(got, "exit 0\n") {
		t.Errorf("vpn-openconnect:\n%s", got)
	}
	for _, app := range []string{"org.vpnprovider.WireGuard", "org.vpnprovider.OpenConnect"} {
		if out, err := m.vpnctl(seated(container.Alice), "forget", app); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
	m.requireNothing()
}

// documentedRule is the rule of docs/service.md for that file, as it stands
// there.
func documentedRule(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(harness.ModuleRoot(t), "docs", "service.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)`" + regexp.QuoteMeta(file) + "`.*?```js\n(.*?)```").FindSubmatch(text)
	if found == nil {
		t.Fatalf("docs/service.md has no rule for %s", file)
	}
	return string(found[1])
}

// testKnownApps: an app that the administrator's rule names needs no password,
// and no other app gets in. The names of the first go through its tunnel.
func testKnownApps(t *testing.T, m *machine) {
	t.Helper()
	const rules = "/etc/polkit-1/rules.d/48-vpn-apps.rules"
	rule := documentedRule(t, rules)
	m.WriteFile(t, rules, strings.ReplaceAll(rule, "com.example.Demo", "com.example.Test"), 0o644)
	m.Run(t, "systemctl", "restart", "polkit")
	command := seated(container.Alice)
	command.Argv = []string{"/opt/testclient"}
	app := m.Start(t, command)
	app.Await(t, "session /")
	before := m.Run(t, "resolvectl", "status", "--no-pager")
	m.tell(app, "applied", fullTunnel())
	if got := m.Run(t, "resolvectl", "dns", "vpn0"); !strings.Contains(got, vpnDNS) {
		t.Errorf("the tunnel's DNS: %s", got)
	}
	m.lookup("www.example.com", behind)
	m.disconnect(app)
	m.requireNothing()
	m.lookup("www.example.org", onLAN)
	if after := m.Run(t, "resolvectl", "status", "--no-pager"); strings.Contains(after, vpnDNS) || len(after) > len(before) {
		t.Errorf("the DNS was\n%s\nand is\n%s", before, after)
	}

	// The other app is there still, and was forgotten.
	if out, err := m.vpnctl(seated(container.Alice), "create", "com.example.Mirror", "Mirror"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := m.vpnctl(seated(container.Alice), "connect", "Mirror"); err == nil || !strings.Contains(out, "polkit does not allow org.vpnprovider1.trust-provider") {
		t.Errorf("another app: %v\n%s", err, out)
	}
	m.Run(t, "rm", rules)
}

// testOverSSH: the members of a group do without passwords there, others do not.
func testOverSSH(t *testing.T, m *machine) {
	t.Helper()
	out, err := m.vpnctl(remote(container.Bob), "create", "com.example.Mirror", "Bob's")
	if err == nil || !strings.Contains(out, "org.vpnprovider1.manage-own") {
		t.Errorf("without the rule: %v\n%s", err, out)
	}
	const rules = "/etc/polkit-1/rules.d/48-vpn.rules"
	m.WriteFile(t, rules, documentedRule(t, rules), 0o644)
	m.Run(t, "sh", "-c", "groupadd vpn && usermod -a -G vpn bob && systemctl restart polkit")
	app := remote(container.Bob)
	app.Argv = []string{"/opt/mirror"}
	m.Start(t, app)
	harness.Eventually(t, harness.Timeout, "Bob's app connects", func() error {
		out, err := m.vpnctl(remote(container.Bob), "connect", "Mirror")
		if err != nil {
			return errors.New(out)
		}
		return nil
	})
	if out, err := m.vpnctl(remote(container.Bob), "disconnect"); err != nil {
		t.Errorf("disconnect: %v\n%s", err, out)
	}
	if out, err := m.vpnctl(remote(container.Alice), "create", "com.example.Mirror", "Ssh"); err == nil {
		t.Errorf("Alice is not in the group: %s", out)
	}
}
