package container_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const callDaemon = "busctl call org.vpnprovider1 /org/vpnprovider1 org.vpnprovider1.Manager ListConfigs"

// goes waits until systemd says that the daemon does not run any more.
func (m *machine) goes() {
	m.t.Helper()
	harness.Eventually(m.t, harness.Timeout, "the daemon is gone", func() error {
		out, _ := m.Output(container.Command{Argv: []string{"systemctl", "is-active", "vpnproviderd"}})
		if out != "inactive\n" {
			return errors.New(out)
		}
		return nil
	})
}

// knock connects to a packet socket, as root, and waits for the end of it.
func (m *machine) knock(network, name string) {
	m.t.Helper()
	path := m.Root() + "/run/vpnprovider/" + name
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Net: network, Name: path})
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(harness.Timeout))
	if _, err := conn.Write([]byte(strings.Repeat("0", 32) + "\n")); err != nil {
		m.t.Fatal(err)
	}
	if n, err := io.ReadAll(conn); len(n) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		m.t.Errorf("%s answers %q, %v", name, n, err)
	}
}

// wakes has something done that somebody needs the daemon for: it comes, and goes.
func (m *machine) wakes(do func()) {
	m.t.Helper()
	const begun = "ActiveEnterTimestampMonotonic"
	before := m.Run(m.t, "systemctl", "show", "-P", begun, "vpnproviderd")
	do()
	harness.Eventually(m.t, harness.Timeout, "the daemon comes", func() error {
		if now := m.Run(m.t, "systemctl", "show", "-P", begun, "vpnproviderd"); now == before {
			return errors.New("it was there last at " + now)
		}
		return nil
	})
	m.goes()
}

// testActivation: the daemon is there whenever somebody needs it, by the bus or
// by the packet sockets, and not otherwise.
func testActivation(t *testing.T, m *machine) {
	t.Helper()
	m.WriteFile(t, "/etc/systemd/system/vpnproviderd.service.d/idle.conf", "[Service]\nExecStart=\nExecStart=/usr/sbin/vpnproviderd --idle-exit 2s --log-level debug\n", 0o644)
	m.Run(t, "systemctl", "daemon-reload")
	m.Run(t, "systemctl", "start", "vpnproviderd.socket")
	sockets := func() string {
		return m.Run(t, "sh", "-c", "stat -c '%A %U %n' /run/vpnprovider/packets.*; stat -c '%i' /run/vpnprovider/packets.*")
	}
	before := sockets()
	if !strings.HasPrefix(before, "srw-rw-rw- vpnprovider /run/vpnprovider/packets.sock\nsrw-rw-rw- vpnprovider /run/vpnprovider/packets.stream\n") {
		t.Errorf("the sockets are\n%s", before)
	}
	m.goes()
	for network, name := range map[string]string{"unix": "packets.stream", "unixpacket": "packets.sock"} {
		m.wakes(func() { m.knock(network, name) })
	}
	m.wakes(func() { m.RunAs(t, container.Alice, "sh", "-c", callDaemon) })

	// A session over a socket that systemd has made.
	app := m.client("stream")
	m.tell(app, "applied", fullTunnel())
	m.lookup("www.example.com", behind)
	time.Sleep(3 * time.Second) // more than it takes to be idle
	m.lookup("again.example.com", behind)
	m.disconnect(app)
	m.goes()
	m.requireNothing()

	// Nobody is sent away because the daemon is just leaving.
	m.Run(t, "sh", "-c", "sed -i 's/2s/10ms/' /etc/systemd/system/vpnproviderd.service.d/idle.conf; systemctl daemon-reload")
	m.WriteFile(t, "/etc/systemd/system/vpnproviderd.service.d/limit.conf", "[Unit]\nStartLimitIntervalSec=0\n", 0o644)
	m.Run(t, "systemctl", "daemon-reload")
	for range 6 {
		out := m.Run(t, "sh", "-c", fmt.Sprintf("for i in $(seq 10); do %s >/tmp/answer 2>&1 || cat /tmp/answer; sleep 0.0$((i %% 10)); done; systemctl show -P NRestarts vpnproviderd", callDaemon))
		if out != "0\n" {
			t.Errorf("calls that failed, and restarts:\n%s", out)
		}
	}
	m.goes()
	if after := sockets(); after != before {
		t.Errorf("the sockets were\n%sand are\n%s", before, after)
	}

	// Without the unit the daemon makes them itself.
	m.Run(t, "systemctl", "stop", "vpnproviderd.socket")
	m.Run(t, "systemctl", "mask", "--now", "vpnproviderd.socket")
	if out, err := m.Output(container.Command{Argv: []string{"sh", "-c", "ls /run/vpnprovider/packets.*"}}); err == nil {
		t.Errorf("left: %s", out)
	}
	m.Run(t, "sh", "-c", "sed -i 's/10ms/2s/' /etc/systemd/system/vpnproviderd.service.d/idle.conf; systemctl daemon-reload")
	app = m.client("stream")
	m.tell(app, "applied", fullTunnel())
	m.lookup("www.example.com", behind)
	m.disconnect(app)
	m.goes()
	if out, err := m.Output(container.Command{Argv: []string{"sh", "-c", "ls /run/vpnprovider/packets.*"}}); err == nil {
		t.Errorf("left: %s", out)
	}
}
