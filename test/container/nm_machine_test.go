package container_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// desktop is a Debian with NetworkManager, where Alice sits at the screen, and
// the daemon and the bridge are installed. Behind its uplink is a WireGuard
// server, with a web server that says who asks.
type desktop struct {
	*machine
	ns     *harness.Namespace // the LAN
	server *wgServer
}

// uplink is the profile by which NetworkManager manages eth0.
const uplink = `[connection]
id=uplink
uuid=5a1ab1e0-0000-4000-8000-000000000001
type=ethernet
interface-name=eth0

[ipv4]
method=manual
address1=192.0.2.2/24,192.0.2.1
dns=192.0.2.53;

[ipv6]
method=disabled
`

// insideTunnel is an address that the tunnels include.
const insideTunnel = "203.0.113.7"

func newDesktop(t *testing.T, p nmPrograms, packages ...string) *desktop {
	t.Helper()
	packages = append(packages, "network-manager", "dbus-user-session", "curl")
	m := &machine{Container: container.Start(t, container.Options{Packages: packages}), t: t}
	d := &desktop{machine: m, ns: harness.NewNamespace(t, "lan")}
	// Before there is the link: NetworkManager would set it up by itself.
	m.WriteFile(t, "/etc/NetworkManager/system-connections/uplink.nmconnection", uplink, 0o600)
	m.Run(t, "nmcli", "connection", "load", "/etc/NetworkManager/system-connections/uplink.nmconnection")
	m.install(p.programs)
	d.installBridge(p)
	m.Connect(t, "eth0", d.ns, "lan0")
	d.ns.IP(t, "addr add 192.0.2.1/24 dev lan0", "addr add "+insideTunnel+"/32 dev lo")
	m.lan = harness.StartDNS(t, d.ns, lanDNS, map[string]string{"www.example.org": onLAN})
	harness.StartWeb(t, d.ns, 80)
	d.server = startWireGuard(t, d.ns)
	d.awaitActive("uplink")
	// Who is at the screen, and who is not; they stay as long as the test.
	m.Start(t, container.Command{Argv: []string{"cat"}, User: container.Alice, Seat: true})
	m.Start(t, container.Command{Argv: []string{"cat"}, User: container.Bob})
	d.await("Alice's services run", func() error {
		if out := d.alice("systemctl --user is-active vpn-nm-bridge.service"); out != "active" {
			return errors.New(out)
		}
		return nil
	})
	return d
}

// installBridge puts its files where packages have them.
func (d *desktop) installBridge(p nmPrograms) {
	d.t.Helper()
	root := harness.ModuleRoot(d.t)
	d.CopyFile(d.t, p.bridge, "/usr/bin/vpn-nm-bridge", 0o755)
	d.CopyFile(d.t, p.ctl, "/usr/bin/vpnctl", 0o755)
	d.CopyFile(d.t, p.wireguard, "/usr/bin/vpn-wireguard", 0o755)
	for from, to := range map[string]string{
		"cmd/vpn-nm-bridge/vpn-nm-bridge.name":                "/usr/lib/NetworkManager/VPN/vpn-nm-bridge.name",
		"cmd/vpn-nm-bridge/vpn-nm-bridge.NetworkManager.conf": "/usr/lib/NetworkManager/conf.d/vpn-nm-bridge.conf",
		"dbus-policy/vpn-nm-bridge.conf":                      "/usr/share/dbus-1/system.d/vpn-nm-bridge.conf",
		"systemd/vpn-nm-bridge.sysusers.conf":                 "/usr/lib/sysusers.d/vpn-nm-bridge.conf",
		"systemd/user/vpn-nm-bridge.service":                  "/usr/lib/systemd/user/vpn-nm-bridge.service",
	} {
		d.CopyFile(d.t, filepath.Join(root, from), to, 0o644)
	}
	d.sh("mkdir -p /usr/lib/systemd/user/default.target.wants; ln -s ../vpn-nm-bridge.service /usr/lib/systemd/user/default.target.wants/")
	// That Bob may use NetworkManager is not enough for Alice's profiles.
	d.WriteFile(d.t, "/etc/polkit-1/rules.d/10-bob.rules", `polkit.addRule(function (action, subject) {
    if (action.id.indexOf("org.freedesktop.NetworkManager.") == 0 && subject.user == "bob") { return polkit.Result.YES; }
});
`, 0o644)
	d.sh("systemd-sysusers; systemctl reload dbus; systemctl reload NetworkManager")
}

// sh runs a script as root and returns what it printed, without the end of the
// last line.
func (d *desktop) sh(script string) string {
	d.t.Helper()
	return strings.TrimSuffix(d.Run(d.t, "sh", "-ec", script), "\n")
}

// try is sh for what may fail.
func (d *desktop) try(script string) error {
	out, err := d.Output(container.Command{Argv: []string{"sh", "-ec", script}})
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// as runs a script as a user, as a service of the user's own, and returns what
// it printed, also where it fails. The user is logged in.
func (d *desktop) as(user, script string) (string, error) {
	d.t.Helper()
	out, err := d.Output(ofUser(user, script))
	return strings.TrimSuffix(out, "\n"), err
}

func ofUser(user, script string) container.Command {
	return container.Command{Argv: []string{
		"sh", "-ec", `uid=$(id -u "$0"); exec setpriv --reuid="$0" --regid="$0" --init-groups \
			env XDG_RUNTIME_DIR=/run/user/$uid HOME=/home/"$0" USER="$0" \
			systemd-run --user --quiet --pipe --wait --collect --working-directory=/home/"$0" sh -c "$1"`, user, script,
	}}
}

func (d *desktop) alice(script string) string {
	d.t.Helper()
	out, _ := d.as(container.Alice, script)
	return out
}

func (d *desktop) await(what string, check func() error) {
	d.t.Helper()
	harness.Eventually(d.t, harness.Timeout, what, check)
}

// wireguard makes configs of Alice's, and lets their app run in her session.
func (d *desktop) wireguard(names ...string) {
	d.t.Helper()
	for _, name := range names {
		file := fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = %s/32\nDNS = %s\n\n[Peer]\nPublicKey = %s\nEndpoint = 192.0.2.1:%d\nAllowedIPs = 0.0.0.0/0\n",
			d.server.userKey, tunnelAddress, vpnDNS, d.server.publicKey, wgPort)
		d.WriteFile(d.t, "/home/alice/"+name+".conf", file, 0o644)
		if out, err := d.as(container.Alice, "vpn-wireguard import "+name+".conf"); err != nil {
			d.t.Fatalf("import: %v\n%s", err, out)
		}
	}
	d.serve()
}

// serve starts the app, as a service of Alice's.
func (d *desktop) serve() {
	d.t.Helper()
	d.must(container.Alice, "systemd-run --user --quiet --unit=wg --collect --service-type=notify vpn-wireguard serve")
}

// must is as for what has to succeed.
func (d *desktop) must(user, script string) string {
	d.t.Helper()
	out, err := d.as(user, script)
	if err != nil {
		d.t.Fatalf("%s: %s: %v\n%s", user, script, err, out)
	}
	return out
}

// awaitActive waits until NetworkManager has a profile active.
func (d *desktop) awaitActive(name string) {
	d.t.Helper()
	d.await(name+" is active in NetworkManager", func() error {
		return d.try("nmcli -t -f NAME,STATE connection show --active | grep -x " + name + ":activated")
	})
}

// awaitNotActive waits until NetworkManager does not know a profile as active.
func (d *desktop) awaitNotActive(name string) {
	d.t.Helper()
	d.await(name+" is not active in NetworkManager", func() error {
		return d.try("active=$(nmcli -t -f NAME,STATE connection show --active); ! echo \"$active\" | grep ^" + name + ":")
	})
}

// awaitState waits until a config is in a state.
func (d *desktop) awaitState(name, state string) {
	d.t.Helper()
	d.await(name+" is "+state, func() error {
		if out := d.alice("vpnctl list"); !hasLine(out, name, state) {
			return errors.New(out)
		}
		return nil
	})
}

func hasLine(text string, words ...string) bool {
	for line := range strings.Lines(text) {
		fields := " " + strings.Join(strings.Fields(line), " ") + " "
		found := true
		for _, word := range words {
			found = found && strings.Contains(fields, " "+word+" ")
		}
		if found {
			return true
		}
	}
	return false
}

// network is all that NetworkManager could have touched.
func (d *desktop) network() string {
	d.t.Helper()
	// (NetworkManager may set up lo anew, with another flag.)
	return d.sh(`{ ip -o -d link | sed 's/^[0-9]*: //; s/ qlen.*//'; ip -o addr | sed 's/^[0-9]*: //; s/_lft.*//'; ip rule; ip -6 rule
		ip -N route show table all | sort; ip -6 -N route show table all | sort; nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'
		resolvectl dns; resolvectl domain; resolvectl default-route; cat /etc/resolv.conf; } | sed 's/^Link [0-9]*//; s/@if[0-9]*//; s/tunnel-[0-9]*/tunnel/; /^lo /s/noprefixroute //'`)
}

// requireNetwork waits until it is as it was.
func (d *desktop) requireNetwork(want string) {
	d.t.Helper()
	d.await("the network is as before", func() error {
		if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(d.network(), "\n")); diff != "" {
			return errors.New("- wanted + found\n" + diff)
		}
		return nil
	})
}

// requireSource wants that a page inside the tunnel is asked for from there.
func (d *desktop) requireSource(want string) {
	d.t.Helper()
	d.await("the web server is asked by "+want, func() error {
		if out := d.alice("curl -sS --max-time 5 http://" + insideTunnel + "/"); out != want {
			return errors.New(out)
		}
		return nil
	})
}
