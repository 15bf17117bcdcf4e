package dbuspolicy

import (
	"os"
	"slices"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// resolvedActions stand in for those that systemd-resolved brings.
const resolvedActions = `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE policyconfig PUBLIC "-//freedesktop//DTD PolicyKit Policy Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/PolicyKit/1/policyconfig.dtd">
<policyconfig>`

func resolvedAction(id string) string {
	return `<action id="` + id + `"><description>x</description><message>x</message><defaults>
<allow_any>auth_admin</allow_any><allow_inactive>auth_admin</allow_inactive><allow_active>auth_admin_keep</allow_active>
</defaults></action>`
}

// startPolkit runs a bus with a real polkitd that has our actions and rules
// alone.
func startPolkit(t *testing.T) *harness.Bus {
	t.Helper()
	host := newHost(t)
	bus := harness.StartBus(t, host, harness.BusOptions{Policy: harness.ShippedPolicy, PolicyFiles: []string{harness.PolkitPolicy}})
	resolved := resolvedActions
	for _, id := range []string{"set-dns-servers", "set-domains", "revert", "register-service"} {
		resolved += resolvedAction("org.freedesktop.resolve1." + id)
	}
	files := map[string]string{"org.freedesktop.resolve1.policy": resolved + "</policyconfig>"}
	for _, name := range []string{"org.vpnprovider1.policy", "49-vpnproviderd.rules"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
	}
	host.PolkitFiles(t, files)
	bus.StartPolkit(t)
	return bus
}

const (
	authority = "/org/freedesktop/PolicyKit1/Authority"
	authorize = "org.freedesktop.PolicyKit1.Authority."
)

// TestPolkitActions reads back what polkitd understood: it drops what it
// cannot read, without an error that anybody would see.
func TestPolkitActions(t *testing.T) {
	conn := startPolkit(t).Dial(t)
	c := callObject(t, conn, "org.freedesktop.PolicyKit1", authority, authorize+"EnumerateActions", "")
	var actions []struct {
		ID, Description, Message, Vendor, VendorURL, Icon string
		Any, Inactive, Active                             uint32
		Annotations                                       map[string]string
	}
	if err := c.Store(&actions); err != nil {
		t.Fatal(err)
	}
	names := []string{"no", "auth_self", "auth_admin", "auth_self_keep", "auth_admin_keep", "yes"} // PolkitImplicitAuthorization
	var got []string
	for _, a := range actions {
		id, ours := strings.CutPrefix(a.ID, "org.vpnprovider1.")
		if !ours {
			continue
		}
		got = append(got, strings.Join([]string{id, names[a.Any], names[a.Inactive], names[a.Active]}, " "))
		if owner := a.Annotations["org.freedesktop.policykit.owner"]; owner != "unix-user:"+serviceUser {
			t.Errorf("%s has the owner %q", id, owner)
		}
		if a.Description == "" || a.Message == "" {
			t.Errorf("%s has no text for the prompt", id)
		}
	}
	slices.Sort(got)
	want := []string{
		"capture auth_admin auth_admin_keep auth_self_keep",
		"connect auth_admin_keep auth_admin_keep yes",
		"manage-others auth_admin auth_admin auth_admin_keep",
		"manage-own auth_self auth_self_keep yes",
		"set-lockdown auth_admin auth_admin auth_admin_keep",
		"trust-provider auth_admin_keep auth_admin_keep auth_self",
	}
	if !slices.Equal(got, want) {
		t.Errorf("polkitd has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// check asks polkit, as the one who has conn, about another connection.
func check(t *testing.T, conn, subject *godbus.Conn, action string) (verdict string) {
	t.Helper()
	type identity struct {
		Kind    string
		Details map[string]godbus.Variant
	}
	c := callObject(t, conn, "org.freedesktop.PolicyKit1", authority, authorize+"CheckAuthorization",
		identity{"system-bus-name", map[string]godbus.Variant{"name": godbus.MakeVariant(subject.Names()[0])}},
		action, map[string]string{}, uint32(0), "")
	var result struct {
		Authorized, Challenge bool
		Details               map[string]string
	}
	switch err := c.Store(&result); {
	case err != nil:
		return errorName(t, action, c)
	case result.Authorized:
		return "yes"
	case result.Challenge:
		return "ask"
	}
	return "no"
}

func TestPolkitAnswers(t *testing.T) {
	bus := startPolkit(t)
	root, daemon := bus.Dial(t), bus.DialAs(t, serviceUID)
	alice, bob := bus.DialAs(t, harness.Alice), bus.DialAs(t, harness.Bob)
	for _, c := range []struct {
		what          string
		conn, subject *godbus.Conn
		action, want  string
	}{
		{"the daemon asks about a user", daemon, alice, "org.vpnprovider1.connect", "ask"},
		{"the daemon asks about root", daemon, root, "org.vpnprovider1.set-lockdown", "yes"},
		{"another user asks about a user", bob, alice, "org.vpnprovider1.connect", "org.freedesktop.PolicyKit1.Error.NotAuthorized"},
		{"resolved asks about the daemon", root, daemon, "org.freedesktop.resolve1.set-dns-servers", "yes"},
		{"resolved asks about the daemon", root, daemon, "org.freedesktop.resolve1.set-domains", "yes"},
		{"resolved asks about the daemon", root, daemon, "org.freedesktop.resolve1.revert", "yes"},
		{"resolved asks about the daemon", root, daemon, "org.freedesktop.resolve1.register-service", "ask"},
		{"resolved asks about a user", root, alice, "org.freedesktop.resolve1.set-dns-servers", "ask"},
	} {
		if got := check(t, c.conn, c.subject, c.action); got != c.want {
			t.Errorf("%s, %s: %s, want %s", c.what, c.action, got, c.want)
		}
	}
}
