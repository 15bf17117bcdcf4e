package resolved_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/resolved"
	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	lanDNS  = "192.0.2.53"
	corpDNS = "10.1.2.3"
)

// lab is a machine with a real systemd-resolved, with a LAN, whose DNS it
// uses, and a link that leads to the corporation.
type lab struct {
	*container.Container
	t         testing.TB
	lan, corp *harness.Process // name servers
	corpWire  *harness.Sniffer
	link      routing.Link
	resolver  *resolved.Resolver
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{Container: container.Start(t, container.Options{}), t: t}
	lan, corp := harness.NewNamespace(t, "lan"), harness.NewNamespace(t, "corp")
	l.Connect(t, "eth0", lan, "lan0")
	l.Connect(t, "vpn0", corp, "corp0")
	l.Run(t, "ip", "link", "set", "vpn0", "down")
	lan.IP(t, "addr add 192.0.2.1/24 dev lan0")
	corp.IP(t, "addr add 10.1.2.1/24 dev corp0")
	l.corpWire = corp.Sniff(t, "corp0")
	l.lan = harness.StartDNS(t, lan, lanDNS, map[string]string{"www.example.org": "198.51.100.1", "printer.lan.example": "192.0.2.9"})
	l.corp = harness.StartDNS(t, corp, corpDNS, map[string]string{"www.corp.example": "10.9.9.9", "www.example.org": "10.8.8.8"})
	l.Run(t, "ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	l.Run(t, "ip", "addr", "add", "10.1.2.2/24", "dev", "vpn0")
	// What a DHCP client does.
	l.Run(t, "resolvectl", "dns", "eth0", lanDNS)
	l.Run(t, "resolvectl", "domain", "eth0", "lan.example")

	index, err := strconv.Atoi(strings.TrimSpace(l.Run(t, "cat", "/sys/class/net/vpn0/ifindex")))
	if err != nil {
		t.Fatal(err)
	}
	l.link = routing.Link{Name: "vpn0", Index: index}
	l.resolver = newResolver(t, l.Bus())
	return l
}

// up sets the DNS and then, as the daemon does, the link up.
func (l *lab) up(want routing.Resolution) {
	l.t.Helper()
	set(l.t, l.resolver, want)
	l.Run(l.t, "ip", "link", "set", "vpn0", "up")
}

func (l *lab) dns(full bool, dns routing.DNS) routing.Resolution {
	dns.Servers = []netip.Addr{netip.MustParseAddr(corpDNS)}
	return routing.Resolution{Link: l.link, DNS: dns, Full: full}
}

// lookup gives the address that programs on the machine get; "" is none.
func (l *lab) lookup(name string) string {
	l.t.Helper()
	out, err := l.Output(container.Command{Argv: []string{"getent", "ahostsv4", name}})
	if err != nil {
		return ""
	}
	address, _, _ := strings.Cut(out, " ")
	return address
}

// asked says whether a server was asked for a name.
func asked(server *harness.Process, name string) bool {
	return strings.Contains(server.Output(), "] "+name+" from")
}

func (l *lab) requireLookup(name, want string) {
	l.t.Helper()
	if got := l.lookup(name); got != want {
		l.t.Errorf("%s is %q, want %q", name, got, want)
	}
}

// multicasts counts what a link was asked of everybody on it.
func multicasts(t testing.TB, s *harness.Sniffer) int {
	t.Helper()
	return s.Count(t, func(p harness.Packet) bool { return slices.Contains([]uint16{5353, 5355}, p.DstPort) })
}

func TestRealSplit(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.up(l.dns(false, routing.DNS{Match: []string{"corp.example"}}))
	l.requireLookup("www.corp.example", "10.9.9.9")
	l.requireLookup("www.example.org", "198.51.100.1")
	if asked(l.lan, "www.corp.example") {
		t.Error("the LAN was asked for a name of the corporation")
	}
	if asked(l.corp, "www.example.org") {
		t.Error("the corporation was asked for a name that is not its own")
	}
	if err := l.resolver.Revert(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.requireLookup("www.corp.example", "")
	harness.Eventually(t, harness.Timeout, "the LAN is asked after the end", func() error {
		if !asked(l.lan, "www.corp.example") {
			return errors.New(l.lan.Output())
		}
		return nil
	})
}

func TestRealFull(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	before := l.Run(t, "resolvectl", "status", "--no-pager", "vpn0")
	l.up(l.dns(true, routing.DNS{Search: []string{"corp.example"}}))
	l.requireLookup("www.example.org", "10.8.8.8")
	l.requireLookup("www", "10.9.9.9") // the search domain
	l.requireLookup("nowhere.example.net", "")
	if asked(l.lan, "www.example.org") || asked(l.lan, "nowhere.example.net") || asked(l.lan, "www.corp.example") {
		t.Errorf("the LAN was asked:\n%s", l.lan.Output())
	}
	if n := multicasts(t, l.corpWire); n > 0 {
		t.Errorf("%d questions to everybody behind the tunnel\n%s", n, l.corpWire)
	}
	l.Run(t, "ip", "link", "set", "vpn0", "down")
	if err := l.resolver.Revert(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.requireLookup("www.example.org", "198.51.100.1")
	if after := l.Run(t, "resolvectl", "status", "--no-pager", "vpn0"); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestRealRestart: a resolved that is restarted is told again, also where it
// remembers nothing itself.
func TestRealRestart(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	want := l.dns(true, routing.DNS{})
	l.up(want)
	ctx, cancel := context.WithCancel(t.Context())
	done, told := make(chan error, 1), make(chan error, 100)
	go func() {
		done <- l.resolver.Watch(ctx, func(running bool) {
			if running {
				told <- l.resolver.Set(ctx, want)
			}
		})
	}()
	next := func() {
		t.Helper()
		select {
		case err := <-told:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(harness.Timeout):
			t.Fatal("nothing was told")
		}
	}
	next()
	for _, restart := range []string{
		"systemctl restart systemd-resolved",
		"systemctl kill --signal=KILL systemd-resolved", // and systemd starts it again
		"systemctl stop systemd-resolved; rm -r /run/systemd/resolve/netif; systemctl start systemd-resolved; resolvectl dns eth0 " + lanDNS,
	} {
		l.Run(t, "sh", "-c", restart)
		next()
		l.requireLookup("www.example.org", "10.8.8.8")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if asked(l.lan, "www.example.org") {
		t.Error("the LAN was asked")
	}
}

// TestRealDisabled: a resolved that is installed and not used is told from one
// that can be used.
func TestRealDisabled(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	state := func(running, startable bool) {
		t.Helper()
		r, s, err := l.resolver.State(t.Context())
		if r != running || s != startable || err != nil {
			t.Errorf("running %v, startable %v, %v", r, s, err)
		}
	}
	state(true, false)
	l.Run(t, "systemctl", "stop", "systemd-resolved")
	state(false, true)
	l.up(l.dns(true, routing.DNS{})) // which starts it
	l.requireLookup("www.example.org", "10.8.8.8")
	l.Run(t, "systemctl", "disable", "--now", "systemd-resolved")
	if err := l.resolver.Set(t.Context(), l.dns(true, routing.DNS{})); err == nil || !strings.Contains(err.Error(), "is not running") {
		t.Errorf("Set: %v", err)
	}
	if err := l.resolver.Revert(t.Context()); err != nil {
		t.Errorf("Revert: %v", err)
	}
}

// TestRealHang: what a stuck resolved was told holds when it goes on, in order.
func TestRealHang(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.up(l.dns(true, routing.DNS{}))
	l.Run(t, "systemctl", "kill", "--signal=STOP", "systemd-resolved")
	if err := l.resolver.Set(t.Context(), l.dns(true, routing.DNS{Search: []string{"other.example"}})); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Set: %v", err)
	}
	if err := l.resolver.Revert(t.Context()); err != nil {
		t.Errorf("Revert: %v", err)
	}
	l.Run(t, "systemctl", "kill", "--signal=CONT", "systemd-resolved")
	harness.Eventually(t, harness.Timeout, "the link is reverted", func() error {
		if out := l.Run(t, "resolvectl", "dns", "vpn0"); strings.Contains(out, corpDNS) {
			return errors.New(out)
		}
		return nil
	})
	if domains := l.Run(t, "resolvectl", "domain", "vpn0"); strings.Contains(domains, "other.example") || strings.Contains(domains, "~.") {
		t.Error(domains)
	}
}

// TestRealNewLink: settings for a link that was made this instant.
func TestRealNewLink(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for i := range 10 {
		name := fmt.Sprintf("tun%d", i)
		out := l.Run(t, "sh", "-c", "ip tuntap add mode tun name "+name+" && cat /sys/class/net/"+name+"/ifindex")
		index, err := strconv.Atoi(strings.TrimSpace(out))
		if err != nil {
			t.Fatal(err)
		}
		want := l.dns(true, routing.DNS{})
		want.Link = routing.Link{Name: name, Index: index}
		want.DNS.Servers = append(want.DNS.Servers, netip.MustParseAddr("fd00::53"))
		set(t, l.resolver, want)
		if out := l.Run(t, "resolvectl", "dns", name); !strings.Contains(out, corpDNS+" fd00::53") {
			t.Error(out)
		}
		l.Run(t, "ip", "link", "del", name)
	}
	if err := l.resolver.Revert(t.Context()); err != nil {
		t.Error(err)
	}
	if leftover(t, l.resolver) {
		t.Error("links that are gone are still to be reverted")
	}
}
