package main

import (
	"encoding/json"
	"testing"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

func TestLockdown(t *testing.T) {
	b := newBench(t)
	b.run(0, "create", app, "Work")
	b.run(0, "create", app, "Home")
	if out, _ := b.run(0, "lockdown", "on", "Work"); out != "Work: lockdown on\n" {
		t.Errorf("lockdown on: %q", out)
	}
	b.run(0, "lockdown", "on", "Home")
	out, _ := b.run(0, "show", "Work")
	contains(t, out, "Lockdown:        yes\n")
	out, _ = b.run(0, "status")
	contains(t, out, "Nothing is connected.\n", "info: a lockdown is in force (lockdown)\n")
	out, _ = b.run(0, "lockdown", "off", "Work")
	contains(t, out, "Work: lockdown off\n", "stays in force; vpnctl unlock")
	b.register(b.succeed)
	b.run(0, "connect", "Home")
	out, _ = b.run(0, "status")
	contains(t, out, "Lockdown:    yes\n")
	if out, _ = b.run(0, "unlock"); out != "No lockdown is in force.\n" {
		t.Errorf("unlock: %q", out)
	}
	out, _ = b.run(0, "show", "Home")
	contains(t, out, "Lockdown:        no\n")
	_, errs := b.run(2, "lockdown", "perhaps", "Work")
	contains(t, errs, `"perhaps" is neither on nor off`)
	b.service.Fail("Manager.Unlock", wire.ErrNotAuthorized, "polkit does not allow it")
	_, errs = b.run(1, "unlock")
	contains(t, errs, "polkit does not allow it", hintNotAuthorized)
	for _, want := range []struct {
		args []string
		out  string
	}{
		{[]string{"lockdown", ""}, "on\noff\n:4\n"},
		{[]string{"lockdown", "on", "W"}, "Work\tcom.example.Demo, idle\n:4\n"},
	} {
		if out, _ := b.run(0, append([]string{"__complete"}, want.args...)...); out != want.out {
			t.Errorf("%v: %q, want %q", want.args, out, want.out)
		}
	}
}

func TestHealth(t *testing.T) {
	b := newBench(t)
	if out, _ := b.run(0, "health"); out != "info: this is not the daemon (test)\n" {
		t.Errorf("health: %q", out)
	}
	var list []client.Health
	out, _ := b.run(0, "health", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0].Code != "test" {
		t.Errorf("health --json: %v, %q", err, out)
	}
}

func TestExplain(t *testing.T) {
	b := newBench(t)
	out, _ := b.run(0, "explain", "www.example.com")
	contains(t, out, "www.example.com: 0.0.0.0/0 goes into the tunnel\n", "  Goes:    into the VPN\n", "  DNS:     10.8.0.1\n",
		"  Device:  vpn0\n", "  Source:  10.8.0.2\n", "  Rule:    4650\n", "  Table:   1448083456\n", "  Route:   0.0.0.0/0\n")
	var e client.Explanation
	out, _ = b.run(0, "explain", "--json", "--uid", "4711", "198.51.100.7")
	if err := json.Unmarshal([]byte(out), &e); err != nil || e.UID != 4711 || e.Destination != "198.51.100.7" || e.Route.String() != "0.0.0.0/0" || e.Gateway.IsValid() {
		t.Errorf("explain --json: %v, %+v", err, e)
	}
	out, _ = b.run(0, "explain", "--json", "--uid", "root", "::1")
	if err := json.Unmarshal([]byte(out), &e); err != nil || e.UID != 0 {
		t.Errorf("of root: %v, %+v", err, e)
	}
	_, errs := b.run(2, "explain", "--uid", "no such user", "::1")
	contains(t, errs, `no user "no such user"`)
}
