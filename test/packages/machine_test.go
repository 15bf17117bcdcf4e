package packages

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// machine is a Debian as it is after its installation, with an app that was
// there before the packages.
type machine struct {
	*container.Container
	t *testing.T
}

// mayConnect is what an administrator writes so that somebody at no screen may
// use VPNs, as docs/service.md shows for a group.
const mayConnect = `polkit.addRule(function (action, subject) {
    if (action.id.indexOf("org.vpnprovider1.") == 0 && subject.user == "alice") {
        return polkit.Result.YES;
    }
});
`

func newMachine(t *testing.T) machine {
	t.Helper()
	// openconnect is what the package of the adapter needs, rpm what those for
	// Fedora are installed with. One root for both tests.
	m := machine{container.Start(t, container.Options{Packages: []string{"openconnect", "rpm"}}), t}
	m.CopyFile(t, container.Build(t, "./dbus/client/examples/echo"), "/opt/echo", 0o755)
	m.WriteFile(t, "/etc/polkit-1/rules.d/48-vpn.rules", mayConnect, 0o644)
	return m
}

// put copies packages into the machine and returns their paths there.
func (m machine) put(pkgs ...string) string {
	m.t.Helper()
	var paths []string
	for _, pkg := range pkgs {
		path := "/tmp/" + filepath.Base(pkg)
		m.CopyFile(m.t, pkg, path, 0o644)
		paths = append(paths, path)
	}
	return strings.Join(paths, " ")
}

// sh runs a script as root and returns what it printed, without the end of the
// last line.
func (m machine) sh(script string) string {
	m.t.Helper()
	return strings.TrimSuffix(m.Run(m.t, "sh", "-ec", script), "\n")
}

// alice runs a script as an ordinary user.
func (m machine) alice(script string) string {
	m.t.Helper()
	return strings.TrimSuffix(m.RunAs(m.t, container.Alice, "sh", "-ec", script), "\n")
}

// expect compares what a script prints.
func (m machine) expect(want, script string) {
	m.t.Helper()
	if got := m.sh(script); got != want {
		m.t.Errorf("%s: %q, want %q", script, got, want)
	}
}

// files are all files and folders of the machine, but for what changes on every
// machine all the time.
func (m machine) files() []string {
	m.t.Helper()
	return strings.Split(m.sh(`find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path '/var/lib/dpkg/*' \
		-o -path '/var/log/*' \) -prune -o -print | sort; find /run -xdev -name '*vpn*'`), "\n")
}

// network is what VPNs change.
func (m machine) network() string {
	m.t.Helper()
	return m.sh(`ip -o link | cut -d: -f2; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | grep -v '^fe80\|^multicast' || :
		nft list ruleset; resolvectl --no-pager dns`)
}

// connect runs the app as alice and connects its VPN. The app runs until the
// test ends.
func (m machine) connect() {
	m.t.Helper()
	m.Start(m.t, container.Command{Argv: []string{"sh", "-c", "while :; do /opt/echo; sleep 0.1; done"}, User: container.Alice})
	m.reconnect()
}

// reconnect connects once the app has introduced itself, and sends a packet.
func (m machine) reconnect() {
	m.t.Helper()
	harness.Eventually(m.t, harness.Timeout, "the app is connected", func() error {
		out, err := m.Output(container.Command{Argv: []string{"vpnctl", "connect", "--wait", "10", "Echo"}, User: container.Alice})
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	m.alice("ping -c1 -W20 198.18.0.1")
}

// goesOn checks that the app's session is what it was, and that the app was told
// nothing of it.
func (m machine) goesOn(messages *container.Process) {
	m.t.Helper()
	m.alice("ping -c3 -W20 198.18.0.1")
	m.expect("1", "busctl --json=short call org.vpnprovider1 /org/vpnprovider1 org.vpnprovider1.Manager ListSessions | grep -o '/session/[0-9]*' | cut -d/ -f3")
	if out := messages.Output(); strings.Contains(out, "PlatformMessage") {
		m.t.Errorf("the app was told\n%s", out)
	}
}

// lockdown lets nothing leave outside the app's VPN, daemon or not.
func (m machine) lockdown(before string) {
	m.t.Helper()
	m.alice(`config=$(busctl call org.vpnprovider1 /org/vpnprovider1 org.vpnprovider1.Manager FindConfig 'ssa{sv}' com.example.Echo Echo 0 | cut -d'"' -f2)
		busctl call org.vpnprovider1 "$config" org.vpnprovider1.Config Update 'a{sv}' 1 lockdown b true`)
	m.sh("systemctl stop vpnproviderd")
	if m.network() == before {
		m.t.Error("a lockdown changes nothing")
	}
	m.sh("systemctl start vpnproviderd")
}

// watch begins to record what the daemon tells providers.
func (m machine) watch() *container.Process {
	m.t.Helper()
	p := m.Start(m.t, container.Command{Argv: []string{"busctl", "--json=short", "--match=type=signal,member=PlatformMessage", "monitor"}})
	p.Await(m.t, "Monitoring bus message stream")
	return p
}

// gone checks that the machine has what it had before, and no more.
func (m machine) gone(what string, before, after []string) {
	m.t.Helper()
	for _, f := range after {
		if !slices.Contains(before, f) {
			m.t.Errorf("%s leaves %s", what, f)
		}
	}
	for _, f := range before {
		if !slices.Contains(after, f) {
			m.t.Errorf("%s removes %s, which was there before", what, f)
		}
	}
}

// undone waits until the network is as before.
func (m machine) undone(before string) {
	m.t.Helper()
	harness.Eventually(m.t, harness.Timeout, "the network is as before", func() error {
		if after := m.network(); after != before {
			return errors.New("before:\n" + before + "\nafter:\n" + after)
		}
		return nil
	})
}
