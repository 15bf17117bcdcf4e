package packages

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
)

// callDaemon is a call that everybody may make, and that starts the daemon.
const callDaemon = "busctl call org.vpnprovider1 /org/vpnprovider1 org.vpnprovider1.Manager ListConfigs"

// dpkg is the life of the packages on a Debian, step after step.
func dpkg(old, update built) func(*testing.T) {
	return func(t *testing.T) {
		t.Parallel()
		m := newMachine(t)
		files, network := m.files(), m.network()

		m.sh("dpkg -i " + m.put(slices.Collect(maps.Values(old.deb))...))
		m.checkInstalled()
		m.checkActivation()
		m.connect()
		if m.network() == network {
			t.Error("a VPN changes nothing")
		}

		messages := m.watch()
		pid := m.sh("systemctl show -P MainPID vpnproviderd")
		m.sh("dpkg -i " + m.put(update.deb[service]))
		m.checkInstalled()
		if m.sh("systemctl show -P MainPID vpnproviderd") == pid {
			t.Error("the old daemon runs on")
		}
		m.expect("vpnproviderd "+newer, "vpnproviderd --version")
		m.goesOn(messages)

		// A removal that something else stops halfway is taken back.
		m.sh("/var/lib/dpkg/info/vpnproviderd.prerm remove; /var/lib/dpkg/info/vpnproviderd.postinst abort-remove")
		m.checkInstalled()
		m.checkActivation()
		m.reconnect()

		m.lockdown(network)
		m.reconnect()
		// An app that calls all the time does not bring the daemon back.
		calls := m.Start(t, container.Command{Argv: []string{"sh", "-c", "while :; do " + callDaemon + " >/dev/null 2>&1 && echo called; done"}, User: container.Bob})
		calls.Await(t, "called")
		names := strings.Join(slices.Collect(maps.Keys(old.deb)), " ")
		m.sh("dpkg -r " + names)
		m.undone(network)
		m.expect("", "pgrep vpnproviderd || :")
		m.expect("not-found", "systemctl show -P LoadState vpnproviderd")
		m.expect("", "ls /run/systemd/system | grep vpn || :; systemctl --no-legend --failed")
		if out, err := m.Output(container.Command{Argv: []string{"busctl", "status", "org.vpnprovider1"}}); err == nil {
			t.Errorf("the name still has an owner:\n%s", out)
		}
		m.sh("dpkg -P " + names)
		m.gone("purge", files, m.files())
		m.expect("vpnprovider", "id -un vpnprovider") // the user stays
		// And it can come back.
		m.sh("dpkg -i /tmp/vpnproviderd_" + newer + "*.deb")
		m.checkInstalled()
	}
}

// checkInstalled looks at what there has to be after an installation.
func (m machine) checkInstalled() {
	m.t.Helper()
	m.expect("", "dpkg -V vpnproviderd")
	for _, unit := range []string{"vpnproviderd.service", "vpnproviderd.socket"} {
		m.expect("enabled\nactive", "systemctl is-enabled "+unit+"; systemctl is-active "+unit)
	}
	m.expect("vpnprovider 666\nvpnprovider 666", "stat -c '%U %a' /run/vpnprovider/packets.*")
	m.expect("", "systemctl --no-legend --failed")
	m.expect("vpnprovider 755\nvpnprovider 700\nroot 755\nvpnprovider 750",
		"stat -c '%G %a' /run/vpnprovider /var/lib/vpnprovider /etc/vpnprovider /etc/vpnprovider/configs.d")
	m.sh("systemd-analyze --no-pager security --threshold=15 vpnproviderd >/dev/null")
	m.sh("systemd-analyze --no-pager security --threshold=15 vpnproviderd-cleanup >/dev/null")
}

// checkActivation: an ordinary user's call starts the daemon.
func (m machine) checkActivation() {
	m.t.Helper()
	m.expect("inactive", "systemctl stop vpnproviderd 2>/dev/null; systemctl is-active vpnproviderd || :")
	if out := m.alice(callDaemon); !strings.HasPrefix(out, "a(osss)") {
		m.t.Errorf("ListConfigs: %s", out)
	}
	m.expect("active\nactive", "systemctl is-active vpnproviderd.service vpnproviderd.socket")
	m.expect("vpnprovider", "ps -o user= -C vpnproviderd")
	m.alice("vpnctl list; vpn-openconnect --version; vpn-wireguard --version")
	for _, shell := range []string{"bash-completion/completions/vpnctl", "zsh/*/_vpnctl", "fish/vendor_completions.d/vpnctl.fish"} {
		m.sh("test -s /usr/share/" + shell)
	}
}
