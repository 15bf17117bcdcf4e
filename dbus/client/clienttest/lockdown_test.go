package clienttest_test

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Lockdown, health and explanations of the daemon, through the library.
func TestDaemonLockdown(t *testing.T) {
	h := newHost(t)
	c := dial(t, h.bus.Address)
	p, cfg := register(t, c)
	health := func() (codes []string) {
		t.Helper()
		m, err := c.Properties(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range m.Health {
			codes = append(codes, problem.Code+" "+problem.Severity)
		}
		return codes
	}
	on := true
	if err := cfg.Update(t.Context(), client.ConfigUpdate{Lockdown: &on}); err != nil {
		t.Fatal(err)
	}
	if got, err := cfg.Properties(t.Context()); err != nil || !got.Lockdown || !slices.Equal(health(), []string{"lockdown info"}) {
		t.Errorf("%+v, %v, %q", got, err, health())
	}
	explain := func(destination string, uid *uint32) client.Explanation {
		t.Helper()
		e, err := c.Explain(t.Context(), destination, uid)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	if e := explain("203.0.113.7", nil); e.Action != client.ActionBlocked || !strings.Contains(e.Why, "lockdown") || e.Device != "h0" {
		t.Errorf("%+v", e)
	}
	s := connect(t, p, cfg)
	if _, err := s.SetParameters(t.Context(), tunnel); err != nil {
		t.Fatal(err)
	}
	uid := uint32(harness.Bob)
	e := explain("203.0.113.7", &uid)
	want := client.Explanation{
		Destination: "203.0.113.7", UID: uid, Action: client.ActionTunnel, Why: "203.0.113.0/24 goes into the tunnel", Session: s.Path(),
		Rule: 4650, Table: 0x56500000, Route: netip.MustParsePrefix("203.0.113.0/24"), Device: "vpn0", Source: netip.MustParseAddr("10.8.0.2"),
	}
	e.DNSServers = nil // empty
	if !reflect.DeepEqual(e, want) {
		t.Errorf("got %+v\nwant %+v", e, want)
	}
	if e := explain("www.example.com", nil); !slices.Equal(e.DNSServers, tunnel.DNSServers) || e.Action != client.ActionBlocked {
		t.Errorf("a name: %+v", e) // the server is outside of what the tunnel has
	}
	if err := c.Unlock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := cfg.Properties(t.Context()); err != nil || got.Lockdown || len(health()) != 0 {
		t.Errorf("%+v, %v, %q", got, err, health())
	}
}
