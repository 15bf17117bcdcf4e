package packages

import "testing"

// testRPM installs, upgrades and removes the packages for Fedora, on a Debian:
// there is no other in which the scripts could be seen at work.
func testRPM(t *testing.T, old, update built) {
	m := newMachine(t)
	// What other packages bring on a Fedora.
	m.sh("rpm --initdb; mkdir -p /usr/share/dbus-1/interfaces /usr/share/zsh/site-functions /usr/share/fish/vendor_completions.d")
	files, network := m.files(), m.network()

	const rpm = "rpm --force-debian --nodeps "
	m.sh(rpm + "-i " + m.put(old.rpm[service]) + " " + m.put(old.rpm["vpn-openconnect"]))
	m.expect("", "rpm -V --nodeps vpnproviderd vpn-openconnect")
	m.expect("inactive", "systemctl is-active vpnproviderd || :")
	m.checkActivation()
	m.connect()

	messages := m.watch()
	m.sh(rpm + "-U " + m.put(update.rpm[service]))
	m.expect("vpnproviderd "+newer, "vpnproviderd --version")
	messages.Await(t, `"disconnected","shutdown"`)
	m.undone(network)
	m.reconnect()

	m.sh(rpm + "-e vpn-openconnect vpnproviderd")
	m.undone(network)
	m.expect("not-found", "systemctl show -P LoadState vpnproviderd")
	m.sh("rm -r /etc/vpnprovider /var/lib/vpnprovider /run/vpnprovider") // docs/packages.md
	m.gone("removal", files, m.files())
}
