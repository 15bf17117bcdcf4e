package system

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// serviceUID is the daemon's user, where it is not root.
const serviceUID = 4203

// serviceUser makes the host ready for a daemon that runs as it is shipped: as
// a user of its own, who may open TUN devices and writes resolv.conf in a
// folder of its own.
func (m *machine) serviceUser(t testing.TB) {
	t.Helper()
	m.Host.Run(t, "sh", "-ec", fmt.Sprintf(`
		echo vpnprovider:x:%d:%[1]d::/nonexistent:/bin/false >>/etc/passwd
		echo vpnprovider:x:%[1]d: >>/etc/group
		mkdir /run/dns
		mv /etc/resolv.conf /run/dns
		chown -R vpnprovider:vpnprovider /run/dns
		ln -s ../run/dns/resolv.conf /etc/resolv.conf # seen from outside as well
		mkdir /run/devices
		mount -t tmpfs devices /run/devices
		mknod -m 666 /run/devices/tun c 10 200
		mount --bind /run/devices/tun /dev/net/tun`, serviceUID))
	m.before, m.quick = m.Host.Snapshot(t, resolvConf), m.look(t).text
}

// startAsService starts the daemon as its user, with one capability.
func (m *machine) startAsService(t testing.TB, args ...string) {
	t.Helper()
	program := filepath.Join(harness.TempDir(t), "vpnproviderd")
	script := `#!/bin/sh
exec setpriv --reuid=vpnprovider --regid=vpnprovider --clear-groups --no-new-privs --pdeathsig=SIGKILL \
	--bounding-set=-all,+net_admin --inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin -- ` + harness.Binary(t, "vpnproviderd") + ` "$@"
`
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	m.daemon = harness.NewDaemon(t, m.Host, m.bus, harness.DaemonOptions{Program: program, Args: args})
	for _, dir := range []string{m.daemon.StateDir, m.daemon.RuntimeDir, m.daemon.ConfigDir} {
		if err := os.Chown(dir, serviceUID, serviceUID); err != nil {
			t.Fatal(err)
		}
	}
	m.startAgain(t)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.daemon.Process().PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"Uid:\t4203\t4203\t4203\t4203", "Gid:\t4203\t4203\t4203\t4203", "CapEff:\t0000000000001000", "CapBnd:\t0000000000001000"} {
		if !strings.Contains(string(status), line+"\n") {
			t.Fatalf("the daemon has no %q:\n%s", line, status)
		}
	}
}

// With CAP_NET_ADMIN alone the daemon does its whole job, also after it was
// killed.
func TestUnprivilegedDaemon(t *testing.T) {
	t.Parallel()
	m := newHost(t)
	m.serviceUser(t)
	m.startBus(t)
	m.startAsService(t, "--resolv-conf", "/run/dns/resolv.conf")
	v := m.party(t, harness.Alice, app)
	v.mainJob()
	for i, e := range endings() {
		t.Run(e.name, func(t *testing.T) {
			m.party(t, harness.Alice, fmt.Sprint("com.example.Ending", i)).testEnding(wire.StateConnected, e)
		})
	}

	session, _ := v.establish()
	fd := v.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	v.provider.must(v.protect(session, fd))
	v.daemon.Kill9()
	v.startAgain(t)
	v.Host.RequireSnapshot(t, v.before, resolvConf)
	v.register(dict{})
	v.mainJob()
}

// Where the daemon may not write the DNS, that is said to who wants it, with
// what to do; the rest works.
func TestResolvConfReadOnly(t *testing.T) {
	t.Parallel()
	m := newHost(t)
	m.serviceUser(t)
	m.Host.Run(t, "chown", "-R", "root:root", "/run/dns")
	m.startBus(t)
	m.startAsService(t, "--resolv-conf", "/run/dns/resolv.conf")
	v := m.party(t, harness.Alice, app)
	session := v.connect()
	v.provider.refused(v.provider.on(session, "SetParameters", fullTunnel()), wire.ErrFailed, "/run/dns/resolv.conf", "--resolver none")
	v.requireState(wire.StateConnecting)
	v.requirePresence(t, connecting())
	plain := fullTunnel()
	delete(plain, "dnsServers")
	delete(plain, "domainSearch")
	v.configure(session, plain)
	v.requirePresence(t, presence{link: "up", rules: 2, routes: true})
	v.provider.refused(v.provider.on(session, "SetParameters", fullTunnel()), wire.ErrFailed, "/run/dns/resolv.conf")
	v.requirePresence(t, presence{link: "up", rules: 2, routes: true})
	v.open(session)
	v.ping(t, "1", includedIPv4)
	v.disconnect()
	v.requireClean(t)
}
