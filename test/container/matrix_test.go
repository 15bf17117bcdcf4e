package container_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Callers of the matrix, in the order of its columns.
const (
	byProvider = iota // Alice's app, at the screen
	bySame            // another connection of hers, at the screen
	byCron            // a process of hers without a login session
	byActive          // Bob at the screen
	byInactive        // Bob logged in at the screen, while Alice is in front of it
	byRoot
	callers
)

// cell says what a caller gets: "ok" or the short name of an error. "?x" is a
// question about the polkit action x, and NotAuthorized where it is answered
// with no, or may not be put; "?x y" is the error y instead.
type cell = string

// The rows that many members have in common. Nobody changes them.
var (
	all       = [callers]cell{"ok", "ok", "ok", "ok", "ok", "ok"}
	own       = [callers]cell{"ok", "ok", "ok", "NotFound", "NotFound", "ok"}
	manage    = [callers]cell{"ok", "ok", "?manage-own", "NotFound", "NotFound", "ok"}
	end       = [callers]cell{"ok", "ok", "?connect", "NotFound", "NotFound", "ok"}
	session   = [callers]cell{"ok", "NotOwner", "NotOwner", "NotFound", "NotFound", "NotOwner"}
	forOthers = [callers]cell{"ok", "ok", "ok", "?manage-others", "?manage-others", "ok"}
)

// matrix is who may what: every method and property of the contract, with
// variants of some after a blank.
func matrix() map[string][callers]cell {
	rows := map[string][callers]cell{
		"Manager.RegisterProvider":        {"ok", "ok", "?manage-own", "ok", "?manage-own", "ok"},
		"Manager.UnregisterProvider":      {"ok", "NotOwner", "NotOwner", "NotFound", "NotFound", "NotFound"},
		"Manager.ListProviders":           all,
		"Manager.ForgetProvider":          {"ok", "ok", "?manage-own", "NotFound", "?manage-own", "NotFound"},
		"Manager.ForgetProvider owner":    {"ok", "ok", "?manage-own", "?manage-others", "?manage-others", "ok"},
		"Manager.RegisterAgent":           all,
		"Manager.CreateConfig":            {"ok", "ok", "?manage-own", "ok", "?manage-own", "ok"},
		"Manager.CreateConfig owner":      {"ok", "ok", "?manage-own", "?manage-others", "?manage-others", "ok"},
		"Manager.DestroyConfig":           manage,
		"Manager.FindConfig":              {"ok", "ok", "ok", "NotFound", "NotFound", "NotFound"},
		"Manager.FindConfig owner":        {"ok", "ok", "ok", "?manage-others NotFound", "?manage-others NotFound", "ok"},
		"Manager.ListConfigs":             all,
		"Manager.ListSessions":            all,
		"Manager.ShowAddDialog":           {"ok", "ok", "ok", "ProviderNotRunning", "ProviderNotRunning", "ProviderNotRunning"},
		"Manager.ShowAddDialog owner":     forOthers,
		"Manager.Explain":                 all,
		"Manager.Unlock":                  {"?set-lockdown", "?set-lockdown", "?set-lockdown", "?set-lockdown", "?set-lockdown", "ok"},
		"Manager.Subscribe":               all,
		"Manager.Unsubscribe":             all,
		"Config.Connect":                  {"?trust-provider", "?trust-provider", "?connect", "NotFound", "NotFound", "ok"},
		"Config.Connect trusted":          {"ok", "ok", "?connect", "NotFound", "NotFound", "ok"},
		"Config.Connect connected":        own,
		"Config.Disconnect":               own,
		"Config.Disconnect connected":     end,
		"Config.Remove":                   manage,
		"Config.ShowConfigureDialog":      own,
		"Config.Update":                   manage,
		"Config.Update lockdown":          {"?set-lockdown", "?set-lockdown", "?set-lockdown", "NotFound", "NotFound", "ok"},
		"Session.SetParameters":           session,
		"Session.SendPacket":              {"InvalidParameter", "NotOwner", "NotOwner", "NotFound", "NotFound", "NotOwner"},
		"Session.OpenCapture":             {"ok", "?capture", "?capture", "NotFound", "NotFound", "ok"},
		"Session.Disconnect":              end,
		"ObjectManager.GetManagedObjects": all,
	}
	for _, m := range []string{"NotifyConnectionStateChanged", "Acknowledge", "OpenPacketChannel", "AttachPacketChannel", "CreatePacketToken", "ProtectSocket"} {
		rows["Session."+m] = session
	}
	for _, p := range []string{"Version", "Features", "Sessions", "Health"} {
		rows["Manager."+p+" property"] = all
	}
	for _, p := range []string{"App", "Name", "Owner", "Source", "State", "Session", "Data", "AutoConnect", "Lockdown", "LastConnected", "FailureReason"} {
		rows["Config."+p+" property"] = own
	}
	for _, p := range []string{
		"Config", "State", "Interface", "InterfaceIndex", "Addresses", "MTU", "InclusionList", "ExclusionList", "DNSServers", "DomainSearch",
		"MatchDomains", "Reconnect", "ConnectedSince", "Uplink", "FailureReason", "Statistics",
	} {
		rows["Session."+p+" property"] = own
	}
	// On a config and on a session.
	for _, m := range []string{"Properties.Get", "Properties.GetAll", "Introspectable.Introspect"} {
		rows[m+" config"], rows[m+" session"] = own, own
	}
	readOnly := [callers]cell{"PropertyReadOnly", "PropertyReadOnly", "PropertyReadOnly", "NotFound", "NotFound", "PropertyReadOnly"}
	rows["Properties.Set config"], rows["Properties.Set session"] = readOnly, readOnly
	rows["Peer.Ping"], rows["Peer.GetMachineId"] = all, all
	return rows
}

// TestMatrixIsComplete: each member of the contract has a row, and no row is
// about anything else.
func TestMatrixIsComplete(t *testing.T) {
	interfaces, err := wire.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	members := make(map[string]bool)
	for name, i := range interfaces {
		short := name[strings.LastIndexByte(name, '.')+1:]
		for _, m := range i.Methods {
			members[short+"."+m.Name] = false
		}
		for _, p := range i.Properties {
			members[short+"."+p.Name+" property"] = false
		}
	}
	for row := range matrix() {
		member, variant, _ := strings.Cut(row, " ")
		if variant == "property" {
			member = row
		}
		if _, known := members[member]; !known {
			t.Errorf("the row %q is about no member of the contract", row)
		}
		members[member] = true
	}
	for member, found := range members {
		if !found {
			t.Errorf("%s has no row: who may do that?", member)
		}
	}
}

const (
	matrixApp  = "com.example.Matrix"
	trustedApp = "com.example.Trusted"
	spareApp   = "com.example.Spare"
)

// board is a machine with the callers of the matrix.
type board struct {
	*machine
	alice, cron, bob, root *user
	agents                 map[*user]*agent
	aliceUID, bobUID       uint32

	names int    // of configs
	shown string // what a list must show to who may see it, and to nobody else
}

// newBoard has no rules but those that are shipped.
func newBoard(t *testing.T, p programs) *board {
	t.Helper()
	b := &board{machine: startMachine(t, p, container.Options{}), agents: make(map[*user]*agent)}
	b.Run(t, "rm", "/etc/polkit-1/rules.d/10-test.rules")
	b.CopyFile(t, p.client, "/opt/testuser", 0o755)
	b.WriteFile(t, "/etc/systemd/system/vpnproviderd.service.d/test.conf", "[Service]\nExecStart=\nExecStart=/usr/sbin/vpnproviderd --call-rate 0\n", 0o644)
	if _, err := fmt.Sscan(b.Run(t, "sh", "-c", "id -u alice; id -u bob"), &b.aliceUID, &b.bobUID); err != nil {
		t.Fatal(err)
	}
	b.Run(t, "systemctl", "daemon-reload")
	b.bob = b.user(container.Bob, seated(container.Bob), 1)
	b.alice = b.user(container.Alice, seated(container.Alice), 2)
	b.cron = b.user(container.Alice, sessionless(container.Alice), 1)
	b.root = b.user("root", container.Command{Unit: true}, 1)
	return b
}

// front makes a user's session the one at the screen.
func (b *board) front(u *user) {
	b.t.Helper()
	b.Run(b.t, "loginctl", "activate", u.session)
	for _, other := range []*user{b.alice, b.bob} {
		want := "no"
		if other == u {
			want = "yes"
		}
		harness.Eventually(b.t, harness.Timeout, "the session is switched", func() error {
			if got := strings.TrimSpace(b.Run(b.t, "loginctl", "show-session", "--value", "-p", "Active", other.session)); got != want {
				return fmt.Errorf("%s is active: %s", other.name, got)
			}
			return nil
		})
	}
}

// register makes Alice's first connection the provider of an app.
func (b *board) register(app string) {
	b.t.Helper()
	must(b.t, b.alice.conns[0], wire.RootPath, wire.ManagerInterface, "RegisterProvider", app, dict{})
}

// config makes a new one of Alice's. root does it, who may at any time.
func (b *board) config(app string) (godbus.ObjectPath, string) {
	b.t.Helper()
	b.names++
	name := fmt.Sprintf("config %d", b.names)
	made := must(b.t, b.root.conns[0], wire.RootPath, wire.ManagerInterface, "CreateConfig", app, name, dict{"owner": godbus.MakeVariant(b.aliceUID)})
	return made[0].(godbus.ObjectPath), name
}

// connected is a config with a session that root has connected, with
// parameters.
func (b *board) connected() (config, session godbus.ObjectPath) {
	b.t.Helper()
	config, _ = b.config(matrixApp)
	session = must(b.t, b.root.conns[0], config, wire.ConfigInterface, "Connect", dict{})[0].(godbus.ObjectPath)
	must(b.t, b.alice.conns[0], session, wire.SessionInterface, "SetParameters", dict{"address": godbus.MakeVariant("10.1.0.2/24")})
	return config, session
}

// TestMatrix tries each cell with a real polkitd and real sessions.
func TestMatrix(t *testing.T) {
	harness.Require(t, "systemd-nspawn", "mmdebstrap")
	b := newBoard(t, programs{daemon: container.Build(t, "./cmd/vpnproviderd"), client: container.Build(t, "./test/container/testuser")})
	b.WriteFile(t, fmt.Sprintf("/var/lib/vpnprovider/consents/%d.json", b.aliceUID), `{"apps": ["`+trustedApp+`"]}`, 0o644)
	b.Run(t, "chown", "-R", "vpnprovider:vpnprovider", "/var/lib/vpnprovider")
	for _, u := range []*user{b.alice, b.cron, b.bob} {
		b.agents[u] = b.agent(u, func(string, []string) (string, string) { return "", cancels })
	}
	b.front(b.alice)
	for _, app := range []string{matrixApp, trustedApp} {
		b.register(app)
	}
	inFront := []*user{b.alice, b.bob}
	for _, front := range inFront {
		b.front(front)
		for row, cells := range matrix() {
			for caller, want := range cells {
				// Alice is at the screen for all cells but those of Bob there.
				if (caller == byActive) == (front == b.bob) && row != "Manager.RegisterAgent" {
					b.try(row, caller, want)
				}
			}
		}
	}
	b.front(b.alice)
	for caller, want := range matrix()["Manager.RegisterAgent"] { // an agent is waited for
		if caller != byActive {
			b.try("Manager.RegisterAgent", caller, want)
		}
	}
}

func (b *board) caller(column int) (*user, *godbus.Conn) {
	switch column {
	case byProvider:
		return b.alice, b.alice.conns[0]
	case bySame:
		return b.alice, b.alice.conns[1]
	case byCron:
		return b.cron, b.cron.conns[0]
	case byRoot:
		return b.root, b.root.conns[0]
	}
	return b.bob, b.bob.conns[0]
}

// try is one cell: with a person who could be asked, and where the person is,
// without one too.
func (b *board) try(row string, column int, want cell) {
	b.t.Helper()
	names := [callers]string{"the provider", "another connection", "cron", "Bob at the screen", "Bob in the background", "root"}
	action, asks := strings.CutPrefix(want, "?")
	action, refusal, other := strings.Cut(action, " ")
	switch {
	case asks && !other:
		refusal = "NotAuthorized"
	case !asks:
		action, refusal = "", want
	}
	u, conn := b.caller(column)
	for _, interactively := range []bool{true, false} {
		if !interactively && !asks {
			return
		}
		path, iface, member, args := b.prepare(row, column)
		got := call(b.t, conn, interactively, path, iface, member, args...)
		if name := errorName(got.Err); name != refusal {
			b.t.Errorf("%s by %s (a person may be asked: %v): %s (%v), want %s", row, names[column], interactively, name, got.Err, refusal)
		}
		if sees := strings.Contains(fmt.Sprint(got.Body), b.shown); b.shown != "" && sees != (u != b.bob) {
			b.t.Errorf("%s by %s shows Alice's objects: %v", row, names[column], sees)
		}
		var questions []string
		if a := b.agents[u]; a != nil {
			questions = a.questions()
		}
		if asked := asks && interactively; asked && !slices.Equal(questions, []string{action}) || !asked && len(questions) != 0 {
			b.t.Errorf("%s by %s asked about %q, want %q (a person may be asked: %v)", row, names[column], questions, action, interactively)
		}
		b.tidy(got)
	}
}

// tidy closes descriptors, and brings what was changed back.
func (b *board) tidy(c *godbus.Call) {
	for _, v := range c.Body {
		if fd, ok := v.(godbus.UnixFD); ok {
			_ = unix.Close(int(fd))
		}
	}
	root := b.root.conns[0]
	must(b.t, root, wire.RootPath, wire.ManagerInterface, "Unlock", dict{})
	for _, entry := range must(b.t, root, wire.RootPath, wire.ManagerInterface, "ListConfigs")[0].([][]any) {
		must(b.t, root, wire.RootPath, wire.ManagerInterface, "DestroyConfig", entry[0], dict{})
	}
}

// prepare makes what the row's call needs, and says what is to be called.
func (b *board) prepare(row string, column int) (path godbus.ObjectPath, iface, member string, args []any) {
	b.t.Helper()
	b.shown = ""
	switch row {
	case "Manager.ListConfigs", "Manager.ListSessions", "ObjectManager.GetManagedObjects":
		config, _ := b.connected()
		b.shown = string(config)
	case "Manager.Sessions property":
		_, session := b.connected()
		b.shown = string(session)
	}
	name, variant, _ := strings.Cut(row, " ")
	short, member, _ := strings.Cut(name, ".")
	hers := dict{}
	if variant == "owner" {
		hers["owner"] = godbus.MakeVariant(b.aliceUID)
	}
	if variant == "property" {
		path, iface = b.object(short)
		return path, wire.PropertiesInterface, "Get", []any{iface, member}
	}
	switch short {
	case "Manager":
		return wire.RootPath, wire.ManagerInterface, member, b.managerArgs(member, hers, column)
	case "Config":
		return b.configCall(member, variant)
	case "Session":
		_, session := b.connected()
		return session, wire.SessionInterface, member, sessionArgs(b.t, member)
	case "Peer", "ObjectManager":
		return wire.RootPath, "org.freedesktop.DBus." + short, member, nil
	}
	path, iface = b.object(strings.ToUpper(variant[:1]) + variant[1:])
	args = map[string][]any{
		"Get": {iface, "State"}, "GetAll": {iface}, "Set": {iface, "State", godbus.MakeVariant("idle")},
	}[member]
	return path, "org.freedesktop.DBus." + short, member, args
}

// object is one with that interface of ours.
func (b *board) object(short string) (path godbus.ObjectPath, iface string) {
	b.t.Helper()
	switch short {
	case "Config":
		path, _ = b.config(matrixApp)
		return path, wire.ConfigInterface
	case "Session":
		_, path = b.connected()
		return path, wire.SessionInterface
	}
	return wire.RootPath, wire.ManagerInterface
}

func (b *board) managerArgs(member string, options dict, column int) []any {
	b.t.Helper()
	switch member {
	case "RegisterProvider":
		return []any{fmt.Sprintf("com.example.New%d", column), options}
	case "UnregisterProvider", "ForgetProvider":
		if column != byActive {
			b.register(spareApp)
		}
		return []any{spareApp, options}
	case "RegisterAgent", "Unlock":
		return []any{options}
	case "CreateConfig":
		b.names++
		return []any{matrixApp, fmt.Sprintf("created %d", b.names), options}
	case "DestroyConfig":
		path, _ := b.config(matrixApp)
		return []any{path, options}
	case "FindConfig":
		_, name := b.config(matrixApp)
		return []any{matrixApp, name, options}
	case "ShowAddDialog":
		return []any{matrixApp, options}
	case "Explain":
		return []any{"192.0.2.1", options}
	}
	return nil
}

func (b *board) configCall(member, variant string) (path godbus.ObjectPath, iface, _ string, args []any) {
	b.t.Helper()
	options := dict{}
	switch variant {
	case "connected":
		path, _ = b.connected()
	case "trusted":
		path, _ = b.config(trustedApp)
	default:
		path, _ = b.config(matrixApp)
	}
	if member == "Update" {
		options["data"] = godbus.MakeVariant(dict{})
	}
	if variant == "lockdown" {
		options = dict{"lockdown": godbus.MakeVariant(true)}
	}
	return path, wire.ConfigInterface, member, []any{options}
}

func sessionArgs(t testing.TB, member string) []any {
	t.Helper()
	switch member {
	case "SetParameters":
		return []any{dict{"address": godbus.MakeVariant("10.1.0.3/24")}}
	case "NotifyConnectionStateChanged":
		return []any{wire.NotifyConnected, dict{}}
	case "Acknowledge":
		return []any{"suspend", dict{}}
	case "SendPacket":
		return []any{[]byte{0x45}}
	case "AttachPacketChannel":
		return []any{descriptor(t, unix.AF_UNIX, unix.SOCK_SEQPACKET), dict{}}
	case "ProtectSocket":
		return []any{descriptor(t, unix.AF_INET, unix.SOCK_DGRAM), dict{}}
	}
	return []any{dict{}}
}

// descriptor is that of a new socket, one of a pair where it is of this host.
func descriptor(t testing.TB, family, kind int) godbus.UnixFD {
	t.Helper()
	fds := [2]int{-1, -1}
	var err error
	if family == unix.AF_UNIX {
		fds, err = unix.Socketpair(family, kind|unix.SOCK_CLOEXEC, 0)
	} else {
		fds[0], err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if fd >= 0 {
			f := os.NewFile(uintptr(fd), "socket")
			t.Cleanup(func() { f.Close() })
		}
	}
	return godbus.UnixFD(fds[0])
}
