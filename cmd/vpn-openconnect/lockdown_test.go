package main

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// In a lockdown nothing leaves but through the tunnel and what the app exempts:
// openconnect's own sockets are exempted one by one, so it connects, by a name
// too, and connects again; other programs do not reach the server.
func TestLockdown(t *testing.T) {
	l := newLab(t, harness.OCServOptions{Network: "10.99.0.0/24"})
	const name = "Locked"
	args := append(l.server.OpenConnect(), "--config-name", name)
	p := l.start(t, args...)
	l.awaitState(t, name, client.StateConnected)
	p.Signal(unix.SIGTERM)
	exitCode(t, p)
	l.config(t, name)
	l.Host.Run(t, harness.Binary(t, "vpnctl"), "--bus", l.bus.Address, "lockdown", "on", name)

	clear := l.Clear(t)
	if l.reaches(t, harness.ServerIPv4) {
		t.Fatal("there is no lockdown: the server is reached")
	}
	p = l.start(t, args...)
	cfg := l.awaitState(t, name, client.StateConnected)
	l.fetchFrom(t, "http://203.0.113.9/", "10.99.0.0/24")
	if s := l.session(t, cfg.Session); !strings.Contains(strings.Join(strs(s.ExclusionList), " "), harness.ServerIPv4) {
		t.Errorf("exclusions %v", s.ExclusionList)
	}
	if l.reaches(t, harness.ServerIPv4) {
		t.Error("another program reaches the server in a lockdown")
	}

	// Again, on sockets that are made now.
	before := strings.Count(p.Output(), "Connected to HTTPS on")
	p.Signal(unix.SIGUSR2)
	harness.Eventually(t, harness.Timeout, "it has connected again", func() error {
		if strings.Count(p.Output(), "Connected to HTTPS on") == before {
			return errors.New(p.Output())
		}
		return nil
	})
	l.fetchFrom(t, "http://203.0.113.9/", "10.99.0.0/24")
	if n := clear.Count(t, func(q harness.Packet) bool { return !q.Sent && q.Dst.String() != harness.ServerIPv4 && q.Dst.Is4() }); n != 0 {
		t.Errorf("%d packets in clear, besides those to the server:\n%v", n, clear)
	}
	p.Signal(unix.SIGTERM)
	exitCode(t, p)
	l.Host.Run(t, harness.Binary(t, "vpnctl"), "--bus", l.bus.Address, "unlock")
	l.nothingLeft(t)
}

// reaches says whether a program of the host gets an answer.
func (l *lab) reaches(t *testing.T, address string) bool {
	t.Helper()
	_, err := l.Host.Output(t, harness.Command{Argv: []string{"ping", "-c1", "-W1", address}})
	return err == nil
}

func strs[T interface{ String() string }](list []T) (out []string) {
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}
