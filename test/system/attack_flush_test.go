package system

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Another program removes the firewall, as `systemctl restart nftables` does: it
// is back within a second, with a session, in a lockdown, and with both.
func TestAttackFlush(t *testing.T) {
	v := newVPN(t)
	rules := func() string { return v.Host.Run(t, "nft", "list", "ruleset") }
	s := v.startSender(t)
	for _, c := range []struct {
		name              string
		lockdown, session bool
	}{{"a session", false, true}, {"both", true, true}, {"a lockdown", true, false}} {
		v.lockdown(c.lockdown)
		if c.session {
			v.establish()
		}
		want := rules()
		if !strings.Contains(want, "table inet vpnprovider") {
			t.Fatalf("%s: no rules to be flushed:\n%s", c.name, want)
		}
		var took figures
		before := s.inClear(t)
		for i := range 20 {
			command := []string{"flush", "ruleset"}
			if i%2 == 1 {
				command = []string{"delete", "table", "inet", "vpnprovider"}
			}
			v.Host.Run(t, append([]string{"nft"}, command...)...)
			begun := time.Now()
			harness.Eventually(t, harness.Timeout, "the rules are back", func() error {
				if now := rules(); now != want {
					return fmt.Errorf("there is\n%s", now)
				}
				return nil
			})
			took = append(took, time.Since(begun))
		}
		n := s.inClear(t) - before
		took.require(t, c.name+": from the flush to the rules as they were, as another program sees them", time.Second)
		t.Logf("%s: %d packets in clear during 20 flushes, of 2 a millisecond", c.name, n)
		if c.session && n != 0 {
			t.Errorf("%s: %d packets in clear: the routes alone should have held them", c.name, n)
		}
		if c.session {
			v.disconnect()
		}
	}
	v.lockdown(false)
	s.requireSeen(t)
}

// Another program's rule in front of ours is not fought, but told, and a
// lockdown holds against it.
func TestOverridden(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	clear := v.Clear(t)
	v.establish()
	health := func(want bool) {
		t.Helper()
		harness.Eventually(t, harness.Timeout, "Health", func() error {
			text := fmt.Sprint(v.ui.property(wire.RootPath, "Health"))
			if strings.Contains(text, "overridden") != want {
				return fmt.Errorf("it is %s", text)
			}
			return nil
		})
	}
	health(false)
	v.Host.IP(t, "rule add lookup main") // no priority: in front of all
	health(true)
	if got := explain(v.ui, includedIPv4); got["action"] != "direct" || !strings.Contains(got["why"].(string), "another program") {
		t.Errorf("explained as %v", got)
	}
	if err := v.send(t, includedIPv4, 4340, ""); err != nil {
		t.Error(err)
	}
	awaitCount(t, "what the rule diverts", clear, 1, toPort(4340))
	v.lockdown(true)
	if got := explain(v.ui, includedIPv4); got["action"] != "blocked" || !strings.Contains(got["why"].(string), "lockdown") {
		t.Errorf("explained as %v", got)
	}
	v.requireLocked("overridden", clear)
	v.lockdown(false)
	v.Host.IP(t, "rule del lookup main")
	health(false)
	if got := explain(v.ui, includedIPv4); got["action"] != "tunnel" || got["device"] != "vpn0" || got["table"] != uint32(ourTable) || got["rule"] != uint32(ourRule) {
		t.Errorf("explained as %v", got)
	}
	if got := explain(v.ui, harness.ServerIPv4); got["action"] != "direct" || got["device"] != "h0" || got["gateway"] != harness.RouterIPv4 {
		t.Errorf("explained as %v", got)
	}
	if got := explain(v.ui, "www.example.com"); got["action"] != "tunnel" || fmt.Sprint(got["dnsServers"]) != "["+harness.PrivateDNS+"]" {
		t.Errorf("explained as %v", got)
	}
}

func explain(c *conn, destination string) map[string]any {
	c.t.Helper()
	var answer dict
	c.must(c.manager("Explain", destination, dict{}), &answer)
	got := map[string]any{}
	for key, v := range answer {
		got[key] = v.Value()
	}
	return got
}

// What a person does about lockdowns and leaks.
func TestLockdownByVpnctl(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	clear := v.Clear(t)
	vpnctl := func(want string, args ...string) {
		t.Helper()
		argv := append([]string{harness.Binary(t, "vpnctl"), "--bus", v.bus.Address}, args...)
		if out, err := v.Host.Output(t, harness.Command{Argv: argv, UID: harness.Alice}); err != nil || !strings.Contains(out, want) {
			t.Errorf("vpnctl %s: %v, no %q in\n%s", strings.Join(args, " "), err, want, out)
		}
	}
	vpnctl("Nothing is wrong.", "health")
	vpnctl("203.0.113.7: there is no tunnel\n  Goes:     past the VPN\n", "explain", includedIPv4)
	vpnctl("Work: lockdown on", "lockdown", "on", configName)
	v.requireLocked("by vpnctl", clear)
	vpnctl("info: a lockdown is in force: nothing leaves this host but through the tunnel (lockdown)", "status")
	vpnctl("  Goes:     nowhere\n", "explain", includedIPv4)
	vpnctl("Removed Work.", "remove", configName)
	vpnctl("warning: a lockdown is in force whose config is gone", "health")
	v.requireLocked("without its config", clear)
	vpnctl("No lockdown is in force.", "unlock")
	v.requireOpen(clear)
	vpnctl("Nothing is wrong.", "health")
}
