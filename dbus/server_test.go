package dbus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/dbus"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/drivertest"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const app = "com.example.Demo"

// bench is the service on a bus of its own, with a world in memory behind it.
type bench struct {
	*drivertest.World
	t       testing.TB
	bus     *harness.Bus
	server  *dbus.Server
	manager *driver.Manager
	served  chan error
	log     *lines
}

func newBench(t testing.TB, options ...func(*dbus.Options)) *bench {
	t.Helper()
	b := &bench{World: drivertest.New(), t: t, served: make(chan error, 1), log: &lines{}}
	b.bus = harness.StartBus(t, harness.NewHost(t, "bus"), harness.BusOptions{})
	opts := dbus.Options{Address: b.bus.Address, Version: "test", Log: slog.New(slog.NewTextHandler(b.log, nil))}
	for _, o := range options {
		o(&opts)
	}
	server, err := dbus.Dial(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	b.server = server
	world := b.Options()
	world.Observer, world.Packets = server, server
	if b.manager, err = driver.NewManager(world); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { b.served <- server.Serve(ctx, b.manager) }()
	t.Cleanup(func() {
		cancel()
		b.manager.Shutdown()
		server.Close()
	})
	return b
}

// lines is a log that a test can read while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) holds(text string) error {
	if log := l.String(); !strings.Contains(log, text) {
		return errors.New(log)
	}
	return nil
}

// client is a connection of some user, with all signals that it gets.
type client struct {
	*godbus.Conn
	t       testing.TB
	signals chan *godbus.Signal
}

func (b *bench) client(uid uint32) *client {
	b.t.Helper()
	c := &client{Conn: b.bus.DialAs(b.t, uid), t: b.t, signals: make(chan *godbus.Signal, 10000)}
	c.Signal(c.signals)
	return c
}

type dict = map[string]godbus.Variant

func (c *client) call(path godbus.ObjectPath, method string, args ...any) *godbus.Call {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Timeout)
	defer cancel()
	return c.Object(wire.BusName, path).CallWithContext(ctx, method, 0, args...)
}

func (c *client) manager(member string, args ...any) *godbus.Call {
	return c.call(wire.RootPath, wire.ManagerInterface+"."+member, args...)
}

func (c *client) config(path godbus.ObjectPath, member string, args ...any) *godbus.Call {
	return c.call(path, wire.ConfigInterface+"."+member, args...)
}

func (c *client) session(path godbus.ObjectPath, member string, args ...any) *godbus.Call {
	return c.call(path, wire.SessionInterface+"."+member, args...)
}

func (c *client) must(call *godbus.Call, results ...any) {
	c.t.Helper()
	err := call.Err
	if err == nil && len(results) > 0 {
		err = call.Store(results...)
	}
	if err != nil {
		c.t.Fatalf("%s: %v", call.Method, err)
	}
}

// refused checks the name of the error, and that its text is a sentence.
func (c *client) refused(call *godbus.Call, name string) string {
	c.t.Helper()
	e, ok := call.Err.(godbus.Error)
	if !ok || e.Name != name {
		c.t.Errorf("%s on %s: %v, want %s", call.Method, call.Path, call.Err, name)
		return ""
	}
	if e.Error() == "" || strings.ToLower(e.Error()[:1]) != e.Error()[:1] && !strings.HasPrefix(e.Error(), call.Method[strings.LastIndexByte(call.Method, '.')+1:]) {
		c.t.Errorf("%s: the text %q is no lower-case sentence", call.Method, e.Error())
	}
	return e.Error()
}

// heard gives the signals so far, a line each; everything that was sent
// before has come when a call is answered.
func (c *client) heard() []string {
	c.t.Helper()
	c.must(c.call(wire.RootPath, wire.PeerInterface+".Ping"))
	var list []string
	for {
		select {
		case s := <-c.signals:
			if strings.HasPrefix(s.Name, "org.freedesktop.DBus.Name") {
				continue
			}
			list = append(list, describe(s))
		default:
			return list
		}
	}
}

func describe(s *godbus.Signal) string {
	short := s.Name[strings.LastIndexByte(s.Name, '.')+1:]
	switch short {
	case "PropertiesChanged":
		var parts []string
		for name, v := range s.Body[1].(dict) {
			if name == "State" || name == "FailureReason" || name == "Sessions" {
				parts = append(parts, name+"="+v.String())
			}
		}
		slices.Sort(parts)
		return fmt.Sprintf("%s %s", base(string(s.Path)), strings.Join(parts, " "))
	case "InterfacesAdded", "InterfacesRemoved":
		return fmt.Sprintf("%s %s", short, base(string(s.Body[0].(godbus.ObjectPath))))
	case "PlatformMessage":
		return fmt.Sprintf("message %s %q from %s", s.Body[1], s.Body[2], base(string(s.Path)))
	}
	return fmt.Sprint(short, s.Body)
}

// base names an object shortly: config ids are long.
func base(path string) string {
	if strings.HasPrefix(path, wire.ConfigRoot+"/") {
		return "config"
	}
	return strings.TrimPrefix(path, wire.RootPath)
}

// provider is one of Alice's, with a config.
func (b *bench) provider() (*client, godbus.ObjectPath) {
	b.t.Helper()
	c := b.client(harness.Alice)
	c.must(c.manager("RegisterProvider", app, dict{}))
	var config godbus.ObjectPath
	c.must(c.manager("CreateConfig", "", "Work", dict{}), &config)
	return c, config
}

// state says whether the config is in that state.
func (c *client) state(config godbus.ObjectPath, want string) error {
	c.t.Helper()
	var state godbus.Variant
	c.must(c.call(config, wire.PropertiesInterface+".Get", wire.ConfigInterface, "State"), &state)
	if state.Value() != want {
		return fmt.Errorf("the state is %v", state)
	}
	return nil
}

func parameters() dict {
	return dict{"address": godbus.MakeVariant("10.8.0.2/24"), "inclusionList": godbus.MakeVariant([]string{"10.0.0.0/8"})}
}

// The signals of a session, in the order of the contract, to those whom they
// concern and to nobody else.
func TestSignals(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	ui, stranger, root, mute := b.client(harness.Alice), b.client(harness.Bob), b.client(0), b.client(harness.Alice)
	for _, c := range []*client{ui, stranger, root, mute} {
		c.must(c.manager("ListConfigs"))
	}
	mute.must(mute.manager("Unsubscribe"))
	p.heard()
	var session godbus.ObjectPath
	ui.must(ui.config(config, "Connect", dict{}), &session)
	want := []string{"InterfacesAdded /session/1", ` Sessions=@ao ["/org/vpnprovider1/session/1"]`, `config FailureReason="" State="connecting"`}
	compare(t, "the ui on connect", ui.heard(), without(want, `FailureReason="" `))
	compare(t, "the provider on connect", p.heard(), append(without(want, `FailureReason="" `), `message connected "" from /session/1`))
	p.must(p.session(session, "SetParameters", parameters()))
	p.must(p.session(session, "NotifyConnectionStateChanged", "connected", dict{}))
	compare(t, "the provider while up", p.heard(), []string{
		`/session/1 State="configured"`, `config State="configured"`, `/session/1 State="connected"`, `config State="connected"`,
	})
	ui.heard()
	p.must(p.session(session, "NotifyConnectionStateChanged", "failure", dict{}))
	want = []string{
		`/session/1 FailureReason="provider failure" State="disconnecting"`, `config State="disconnecting"`,
		`config FailureReason="provider failure" State="failed"`, "InterfacesRemoved /session/1", ` Sessions=@ao []`,
	}
	compare(t, "the ui on the end", ui.heard(), want)
	compare(t, "the provider on the end", p.heard(), slices.Insert(slices.Clone(want), 2, `message disconnected "provider failure" from /session/1`))
	if n := len(root.heard()); n != 12 {
		t.Errorf("root heard %d signals", n)
	}
	compare(t, "a stranger", stranger.heard(), nil)
	compare(t, "who unsubscribed", mute.heard(), nil)

	ui.must(ui.config(config, "Connect", dict{}))
	p.heard()
	ui.must(ui.config(config, "Remove", dict{}))
	log := p.heard()
	compare(t, "the provider on removal", log[len(log)-2:], []string{fmt.Sprintf("ConfigRemoved[%s Work]", config), "InterfacesRemoved config"})
}

func without(list []string, part string) []string {
	out := slices.Clone(list)
	for i := range out {
		out[i] = strings.ReplaceAll(out[i], part, "")
	}
	return out
}

func compare(t testing.TB, who string, got, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s heard (-want +got):\n%s", who, diff)
	}
}

// What is not the caller's is answered like what does not exist, whatever is
// called.
func TestInvisible(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	stranger := b.client(harness.Bob)
	absent := map[godbus.ObjectPath]godbus.ObjectPath{
		config:  wire.ConfigRoot + "/" + "00000000000000000000000000000000",
		session: wire.SessionRoot + "/7",
	}
	for there, missing := range absent {
		for _, method := range []string{
			wire.ConfigInterface + ".Connect", wire.SessionInterface + ".Disconnect", "no.such.Method", wire.IntrospectableInterface + ".Introspect",
			wire.PropertiesInterface + ".GetAll", wire.SessionInterface + ".SendPacket",
		} {
			a := stranger.refused(stranger.call(there, method, dict{}), wire.ErrNotFound)
			m := stranger.refused(stranger.call(missing, method, dict{}), wire.ErrNotFound)
			if strings.ReplaceAll(a, id(there), "X") != strings.ReplaceAll(m, id(missing), "X") {
				t.Errorf("%s: %q and %q tell them apart", method, a, m)
			}
		}
	}
	var objects map[godbus.ObjectPath]map[string]dict
	stranger.must(stranger.call(wire.RootPath, wire.ObjectManagerInterface+".GetManagedObjects"), &objects)
	var xml string
	stranger.must(stranger.call(wire.ConfigRoot, wire.IntrospectableInterface+".Introspect"), &xml)
	if len(objects) != 0 || strings.Contains(xml, id(config)) {
		t.Errorf("a stranger sees %v %s", objects, xml)
	}
	p.must(p.call(wire.RootPath, wire.ObjectManagerInterface+".GetManagedObjects"), &objects)
	if len(objects) != 2 || objects[config][wire.ConfigInterface]["Name"].Value() != "Work" || objects[session][wire.SessionInterface]["Interface"].Value() != "vpn0" {
		t.Errorf("the owner sees %v", objects)
	}
	stranger.refused(stranger.manager("DestroyConfig", config, dict{}), wire.ErrNotFound)
	stranger.refused(stranger.manager("FindConfig", app, "Work", dict{"owner": godbus.MakeVariant(uint32(harness.Alice))}), wire.ErrNotFound)
}

func id(path godbus.ObjectPath) string {
	return string(path[strings.LastIndexByte(string(path), '/')+1:])
}

// Features are what there is, and no method is missing.
func TestNotSupported(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var features godbus.Variant
	p.must(p.call(wire.RootPath, wire.PropertiesInterface+".Get", wire.ManagerInterface, "Features"), &features)
	want := []string{"packet", "offload", "attach", "protect-socket", "packet-token", "lockdown", "consent", "uplink", "sleep", "activation", "platform-configs", "ui-events", "explain", "capture"}
	if diff := cmp.Diff(want, features.Value()); diff != "" {
		t.Errorf("Features: %s", diff)
	}
	var info dict
	p.must(p.manager("RegisterProvider", app, dict{}), &info)
	if diff := cmp.Diff(features.Value(), info["features"].Value()); diff != "" {
		t.Errorf("features of RegisterProvider: %s", diff)
	}
	// Each method is called with what its signature wants.
	all, err := wire.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []godbus.ObjectPath{session, config, wire.RootPath} {
		iface := map[godbus.ObjectPath]string{wire.RootPath: wire.ManagerInterface, config: wire.ConfigInterface, session: wire.SessionInterface}[path]
		for _, m := range all[iface].Methods {
			var args []any
			for _, a := range m.Args {
				if a.Direction == "in" {
					args = append(args, example(a.Type, w))
				}
			}
			call := p.call(path, iface+"."+m.Name, args...)
			e, _ := call.Err.(godbus.Error)
			if e.Name == wire.ErrNotSupported || e.Name == wire.ErrUnknownMethod || e.Name == wire.ErrInvalidArgs {
				t.Errorf("%s: %v", m.Name, call.Err)
			}
			if m.Name == "Remove" || m.Name == "Disconnect" || m.Name == "ForgetProvider" {
				p.manager("RegisterProvider", app, dict{})
				p.manager("CreateConfig", app, "Work", dict{})
			}
		}
	}
}

func example(signature string, f *os.File) any {
	switch signature {
	case "s":
		return app
	case "o":
		return godbus.ObjectPath("/")
	case "ay":
		return []byte{0}
	case "h":
		return godbus.UnixFD(f.Fd())
	case "a{sv}":
		return dict{}
	}
	panic("no example of " + signature)
}

// Properties and introspection, with the errors of the D-Bus specification.
func TestStandardInterfaces(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	all, err := wire.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for path, name := range map[godbus.ObjectPath]string{wire.RootPath: wire.ManagerInterface, config: wire.ConfigInterface, session: wire.SessionInterface} {
		var xml string
		p.must(p.call(path, wire.IntrospectableInterface+".Introspect"), &xml)
		if !strings.Contains(xml, all[name].XML) || !strings.Contains(xml, all[wire.PropertiesInterface].XML) {
			t.Errorf("%s: the XML is not that of the contract:\n%s", path, xml)
		}
		call := p.call(path, wire.PropertiesInterface+".GetAll", name)
		p.must(call)
		got := call.Body[0].(dict)
		for _, property := range all[name].Properties {
			if v, ok := got[property.Name]; !ok || v.Signature().String() != property.Type {
				t.Errorf("%s.%s: %v", name, property.Name, v)
			}
			p.refused(p.call(path, wire.PropertiesInterface+".Set", name, property.Name, got[property.Name]), wire.ErrPropertyReadOnly)
			delete(got, property.Name)
		}
		if len(got) != 0 {
			t.Errorf("%s has properties that the XML does not have: %v", name, got)
		}
		p.refused(p.call(path, wire.PropertiesInterface+".Get", name, "Nonsense"), wire.ErrUnknownProperty)
		p.refused(p.call(path, wire.PropertiesInterface+".Set", name, "Nonsense", godbus.MakeVariant(1)), wire.ErrUnknownProperty)
		p.refused(p.call(path, wire.PropertiesInterface+".Get", "no.such.Interface", "State"), wire.ErrUnknownInterface)
		p.refused(p.call(path, name+".Nonsense"), wire.ErrUnknownMethod)
		p.refused(p.call(path, "no.such.Interface.Method"), wire.ErrUnknownInterface)
		p.refused(p.call(path, wire.PropertiesInterface+".Get", name), wire.ErrInvalidArgs)
	}
	for _, path := range []godbus.ObjectPath{"/", "/org", wire.ConfigRoot, wire.SessionRoot} {
		p.must(p.call(path, wire.IntrospectableInterface+".Introspect"))
	}
	for _, path := range []godbus.ObjectPath{"/nowhere", "/org/vpnprovider1/other", "/org/vpnprovider12"} {
		p.refused(p.call(path, wire.IntrospectableInterface+".Introspect"), wire.ErrUnknownObject)
	}
	var machine string
	p.must(p.call("/nowhere", wire.PeerInterface+".GetMachineId"), &machine)
	if len(machine) != 32 {
		t.Errorf("machine id %q", machine)
	}
}

func TestOptions(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	text := p.refused(p.manager("RegisterProvider", app, dict{
		"displayName": godbus.MakeVariant(1), "replace": godbus.MakeVariant("yes"), "nonsense": godbus.MakeVariant(1),
	}), wire.ErrInvalidParameter)
	for _, part := range []string{"displayName", "type i, not s", "replace", "nonsense"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not name %s", text, part)
		}
	}
	p.refused(p.config(config, "Connect", dict{"x": godbus.MakeVariant(1)}), wire.ErrInvalidParameter)
	data := dict{
		"s": godbus.MakeVariant("ü"), "t": godbus.MakeVariant(uint64(1) << 63), "as": godbus.MakeVariant([]string{"a"}),
		"nested": godbus.MakeVariant(dict{"av": godbus.MakeVariant([]godbus.Variant{godbus.MakeVariant("x"), godbus.MakeVariant(0.5)})}),
	}
	p.must(p.config(config, "Update", dict{"data": godbus.MakeVariant(data)}))
	var got godbus.Variant
	p.must(p.call(config, wire.PropertiesInterface+".Get", wire.ConfigInterface, "Data"), &got)
	if got.String() != godbus.MakeVariant(data).String() {
		t.Errorf("data came back as %v", got)
	}
	p.refused(p.config(config, "Update", dict{"data": godbus.MakeVariant(dict{"x": godbus.MakeVariant(struct{ A string }{"a"})})}), wire.ErrInvalidParameter)
}

// The service says goodbye with an error when the bus goes away.
func TestBusLost(t *testing.T) {
	b := newBench(t)
	b.provider()
	b.bus.Kill(t)
	select {
	case err := <-b.served:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(harness.Timeout):
		t.Error("it goes on without a bus")
	}
}

func TestNameTaken(t *testing.T) {
	b := newBench(t)
	if _, err := dbus.Dial(t.Context(), dbus.Options{Address: b.bus.Address}); err == nil || !strings.Contains(err.Error(), "taken") {
		t.Errorf("error %v", err)
	}
}

func TestNoBus(t *testing.T) {
	for _, address := range []string{"unix:path=/nowhere", "tcp:host=localhost,port=1", "unix:x=y", "unix:path=%zz", "nonsense"} {
		_, err := dbus.Dial(t.Context(), dbus.Options{Address: address})
		if err == nil || !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestUplinkProperty(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	get := func() dict {
		t.Helper()
		call := p.call(session, wire.PropertiesInterface+".GetAll", wire.SessionInterface)
		p.must(call)
		return call.Body[0].(dict)["Uplink"].Value().(dict)
	}
	if u := get(); len(u) != 0 {
		t.Errorf("without an uplink: %v", u)
	}
	b.manager.SetUplink(driver.Uplink{
		Interface: "eth0", Index: 2, Gateway: netip.MustParseAddr("fe80::1"), IPv6: true,
		Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, Domains: []string{"home.arpa", "not\xfftext", "nor\x00this"},
	})
	want := dict{
		"interface": godbus.MakeVariant("eth0"), "index": godbus.MakeVariant(int32(2)), "gateway": godbus.MakeVariant("fe80::1"),
		"family": godbus.MakeVariant("ipv6"), "dnsServers": godbus.MakeVariant([]string{"192.0.2.53"}), "domains": godbus.MakeVariant([]string{"home.arpa"}),
	}
	if got := get(); godbus.MakeVariant(got).String() != godbus.MakeVariant(want).String() {
		t.Errorf("Uplink is %v, want %v", got, want)
	}
}
