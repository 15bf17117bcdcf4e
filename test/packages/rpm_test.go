package packages

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// rpm installs, upgrades and removes the packages for Fedora, on a Debian:
// there is no other in which the scripts could be seen at work.
func rpm(old, update built) func(*testing.T) {
	return func(t *testing.T) {
		t.Parallel()
		m := newMachine(t)
		// What other packages bring on a Fedora.
		m.sh("rpm --initdb; mkdir -p /usr/share/dbus-1/interfaces /usr/share/zsh/site-functions /usr/share/fish/vendor_completions.d /usr/share/applications /etc/xdg/autostart " +
			"/usr/lib/NetworkManager/VPN /usr/lib/NetworkManager/conf.d /usr/lib/systemd/user/default.target.wants")
		files, network := m.files(), m.network()

		const program = "rpm --force-debian --nodeps "
		m.sh(program + "-i " + m.put(slices.Collect(maps.Values(old.rpm))...))
		names := strings.Join(slices.Collect(maps.Keys(old.rpm)), " ")
		m.expect("", "rpm -V --nodeps "+names)
		m.expect("inactive", "systemctl is-active vpnproviderd || :")
		m.checkActivation()
		m.connect()

		messages := m.watch()
		m.sh(program + "-U " + m.put(update.rpm[service]))
		m.expect("vpnproviderd "+newer, "vpnproviderd --version")
		m.goesOn(messages)

		m.lockdown(network)
		m.sh(program + "-e " + names)
		m.undone(network)
		m.expect("not-found", "systemctl show -P LoadState vpnproviderd")
		m.sh("rm -r /etc/vpnprovider /var/lib/vpnprovider /run/vpnprovider") // docs/packages.md
		m.gone("removal", files, m.files())
	}
}
