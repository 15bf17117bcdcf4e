package system

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// view is the network of a host as a session changes it, taken within a
// millisecond or two: for moments at which a Snapshot, with the many programs
// that it runs, would come too late.
type view struct {
	text string // links, rules, the routes of all tables, the name servers
	presence
}

// presence is what there is of a session.
type presence struct {
	link    string // of the interface: "", "down" or "up"
	rules   int
	routes  bool
	servers bool // the private name server is the host's
}

func absent() presence { return presence{} }

// connecting is what there is before the first parameters.
func connecting() presence { return presence{link: "down"} }

// configured is what there is with parameters as fullTunnel.
func configured() presence { return presence{link: "up", rules: 2, routes: true, servers: true} }

// What marks rules and routes as the daemon's.
const (
	ourRule  = 4650
	ourTable = 0x56500000
)

func openKernel(t testing.TB, host *harness.Namespace) *netlink.Handle {
	t.Helper()
	var handle *netlink.Handle
	err := host.Do(func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(handle.Close)
	return handle
}

func (m *machine) look(t testing.TB) view {
	t.Helper()
	var v view
	harness.Eventually(t, harness.Timeout, "a look at the network", func() (err error) {
		v, err = m.tryLook() // fails when it changes meanwhile
		return err
	})
	return v
}

func (m *machine) tryLook() (v view, err error) {
	links, err := m.kernel.LinkList()
	if err != nil {
		return v, err
	}
	var lines []string
	for _, l := range links {
		a, up := l.Attrs(), "down"
		if a.RawFlags&unix.IFF_UP != 0 {
			up = "up"
		}
		lines = append(lines, fmt.Sprintf("link %s %s mtu %d", a.Name, up, a.MTU))
		if strings.HasPrefix(a.Name, "vpn") {
			v.link = up
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := m.kernel.RuleList(family)
		if err != nil {
			return v, err
		}
		for _, r := range rules {
			lines = append(lines, fmt.Sprintf("%d %v", family, r))
			if r.Priority == ourRule {
				v.rules++
			}
		}
		routes, err := m.kernel.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return v, err
		}
		for _, r := range routes {
			lines = append(lines, fmt.Sprintf("route %d type %d metric %d %v", family, r.Type, r.Priority, r))
			v.routes = v.routes || r.Table&^0xff == ourTable
		}
	}
	slices.Sort(lines)
	file, err := os.ReadFile(m.Host.Root() + resolvConf)
	v.servers = strings.Contains(string(file), harness.PrivateDNS)
	v.text = strings.Join(lines, "\n") + "\n" + string(file)
	return v, err
}

// requirePresence says what there must be of a session now.
func (m *machine) requirePresence(t testing.TB, want presence) {
	t.Helper()
	if v := m.look(t); v.presence != want {
		t.Fatalf("there is %+v, want %+v\n%s", v.presence, want, v.text)
	}
}

// requireClean waits until nothing of a session is left: its interface goes a
// moment after the rest.
func (m *machine) requireClean(t testing.TB) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, "nothing is left", func() error {
		if now := m.look(t); now.text != m.quick {
			return errors.New(now.text)
		}
		return nil
	})
}
