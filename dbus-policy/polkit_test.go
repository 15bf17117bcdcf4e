package dbuspolicy

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
)

// polkitd is where Debian and Ubuntu have it; it is in no one's PATH.
const polkitd = "/usr/lib/polkit-1/polkitd"

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
func startPolkit(t *testing.T) (address string) {
	t.Helper()
	needNamespace(t, polkitd)
	const theirs = "/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf"
	address = startBus(t, theirs)
	actions, rules, none := sharedDir(t), sharedDir(t), sharedDir(t)
	for source, target := range map[string]string{
		"org.vpnprovider1.policy": filepath.Join(actions, "org.vpnprovider1.policy"),
		"49-vpnproviderd.rules":   filepath.Join(rules, "49-vpnproviderd.rules"),
	} {
		text, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, target, string(text))
	}
	resolved := resolvedActions
	for _, id := range []string{"set-dns-servers", "set-domains", "revert", "register-service"} {
		resolved += resolvedAction("org.freedesktop.resolve1." + id)
	}
	writeFile(t, filepath.Join(actions, "org.freedesktop.resolve1.policy"), resolved+"</policyconfig>")
	bind(t, actions, "/usr/share/polkit-1/actions")
	bind(t, rules, "/usr/share/polkit-1/rules.d")
	bind(t, none, "/etc/polkit-1/rules.d")

	cmd := exec.Command(polkitd, "--no-debug")
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+address)
	start(t, cmd)
	conn := dial(t, address, 0)
	waitFor(t, "polkitd", func() bool {
		c := callObject(t, conn, "org.freedesktop.DBus", "/", "org.freedesktop.DBus.NameHasOwner", "org.freedesktop.PolicyKit1")
		return c.Err == nil && c.Body[0] == true
	})
	return address
}

const (
	authority = "/org/freedesktop/PolicyKit1/Authority"
	authorize = "org.freedesktop.PolicyKit1.Authority."
)

// TestPolkitActions reads back what polkitd understood: it drops what it
// cannot read, without an error that anybody would see.
func TestPolkitActions(t *testing.T) {
	conn := dial(t, startPolkit(t), 0)
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
	address := startPolkit(t)
	root, daemon := dial(t, address, 0), dial(t, address, serviceUID)
	alice, bob := dial(t, address, aliceUID), dial(t, address, bobUID)
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
