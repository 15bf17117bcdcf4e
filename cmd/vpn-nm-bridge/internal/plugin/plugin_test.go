package plugin

import (
	"context"
	"encoding/xml"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/nm"
	"github.com/vpnprovider/vpnproviderd/dbus/stream/streamtest"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	name  = nm.ServiceType + ".Connection_7"
	owner = harness.Alice // whose profile it is
	other = harness.Bob
)

func TestMain(m *testing.M) { harness.Main(m) }

// desk is a plugin on a private bus, with a NetworkManager that is the test.
type desk struct {
	t       *testing.T
	bus     *harness.Bus
	manager *godbus.Conn
	signals chan *godbus.Signal
	done    chan error
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t, bus: harness.StartBus(t, harness.NewHost(t, "host"), harness.BusOptions{}), done: make(chan error, 1)}
	d.manager = d.bus.Dial(t)
	if _, err := d.manager.RequestName(nm.BusName, godbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	d.signals = make(chan *godbus.Signal, 16)
	d.manager.Signal(d.signals)
	conn, err := Dial(t.Context(), d.bus.Address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.done <- Run(ctx, conn, name, slog.New(slog.NewTextHandler(t.Output(), nil)))
	}()
	t.Cleanup(func() { cancel(); <-ended })
	harness.Eventually(t, harness.Timeout, "the plugin has its name", func() error {
		return d.manager.BusObject().Call("org.freedesktop.DBus.GetNameOwner", 0, name).Err
	})
	return d
}

func (d *desk) call(member string, args ...any) error {
	return d.manager.Object(name, path).Call(iface+"."+member, 0, args...).Err
}

// connect is what NetworkManager calls for the owner's profile.
func (d *desk) connect() {
	d.t.Helper()
	data := map[string]string{UIDKey: strconv.Itoa(owner)}
	if err := d.call("Connect", settings{"vpn": {"data": godbus.MakeVariant(data)}}); err != nil {
		d.t.Fatal(err)
	}
	d.expect("StateChanged", stateStarting)
}

// bridge is that of a user.
func (d *desk) bridge(uid uint32) *godbus.Conn {
	d.t.Helper()
	return d.bus.DialAs(d.t, uid)
}

func (d *desk) tell(from *godbus.Conn, word nm.Word) {
	d.t.Helper()
	if err := nm.Signal(from, name, nm.TellPath, nm.TellInterface+"."+nm.TellMember, string(word), "a reason"); err != nil {
		d.t.Fatal(err)
	}
	// The bus has passed it on when it answers, and the plugin it when that does.
	if err := from.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
		d.t.Fatal(err)
	}
}

// next is the plugin's next signal to NetworkManager.
func (d *desk) next() *godbus.Signal {
	d.t.Helper()
	for {
		select {
		case sig := <-d.signals:
			if sig.Path == path {
				return sig
			}
		case <-time.After(harness.Timeout):
			d.t.Fatal("the plugin says nothing")
		}
	}
}

func (d *desk) expect(member string, number uint32) {
	d.t.Helper()
	sig := d.next()
	if got, ok := sig.Body[0].(uint32); sig.Name != iface+"."+member || !ok || got != number {
		d.t.Fatalf("the plugin says %s %v, want %s %d", sig.Name, sig.Body, member, number)
	}
}

// expectShadow wants the configuration that touches nothing.
func (d *desk) expectShadow() {
	d.t.Helper()
	sig := d.next()
	config, ok := sig.Body[0].(map[string]godbus.Variant)
	if sig.Name != iface+".Config" || !ok {
		d.t.Fatalf("the plugin says %s %v", sig.Name, sig.Body)
	}
	for key, want := range map[string]any{"tundev": "_none_", "has-ip4": false, "has-ip6": false, "gateway": uint32(0x0100007f), "can-persist": true} {
		if got := config[key].Value(); got != want {
			d.t.Errorf("%s is %v, want %v", key, got, want)
		}
		delete(config, key)
	}
	if len(config) != 0 {
		d.t.Errorf("there is more: %v", config)
	}
	d.expect("StateChanged", stateStarted)
}

func (d *desk) expectEnd() {
	d.t.Helper()
	select {
	case err := <-d.done:
		if err != nil {
			d.t.Errorf("it failed: %v", err)
		}
		d.done <- nil
	case <-time.After(harness.Timeout):
		d.t.Fatal("the plugin goes on")
	}
}

// TestLife: connected by the user's bridge, disconnected by NetworkManager.
func TestLife(t *testing.T) {
	d := newDesk(t)
	if err := d.call("ConnectInteractive", settings{}, map[string]godbus.Variant{}); err == nil || !strings.Contains(err.Error(), "nothing to ask") {
		t.Errorf("ConnectInteractive: %v", err)
	}
	var secrets string
	if err := d.manager.Object(name, path).Call(iface+".NeedSecrets", 0, settings{}).Store(&secrets); err != nil || secrets != "" {
		t.Errorf("NeedSecrets: %q %v", secrets, err)
	}
	d.connect()
	d.tell(d.bridge(owner), nm.Connected)
	d.expectShadow()
	if err := d.call("Disconnect"); err != nil {
		t.Error(err)
	}
	d.expect("StateChanged", stateStopping)
	d.expect("StateChanged", stateStopped)
	d.expectEnd()
}

// TestToldBefore: the bridge may know before NetworkManager has said whose
// profile it is; another user's word still is not heard.
func TestToldBefore(t *testing.T) {
	d := newDesk(t)
	mine, others := d.bridge(owner), d.bridge(other)
	d.tell(others, nm.Failed)
	d.tell(mine, nm.Connected)
	d.tell(others, nm.Failed)
	d.connect()
	d.expectShadow()
}

// TestForged: another user's word about a connection is not heard.
func TestForged(t *testing.T) {
	d := newDesk(t)
	d.connect()
	mine, others := d.bridge(owner), d.bridge(other)
	d.tell(others, nm.Failed)
	d.tell(others, nm.Lost)
	d.tell(mine, nm.Connected)
	d.expectShadow()
}

// TestHostileSignals: a stranger's signal, whatever it is, ends nothing.
func TestHostileSignals(t *testing.T) {
	d := newDesk(t)
	d.connect()
	streamtest.Signals(t, d.bus.DialRaw(t, other), name)
	d.tell(d.bridge(owner), nm.Connected)
	d.expectShadow()
}

// TestFailures as NetworkManager learns of them.
func TestFailures(t *testing.T) {
	t.Run("failed", func(t *testing.T) {
		d := newDesk(t)
		d.connect()
		d.tell(d.bridge(owner), nm.Failed)
		d.expect("Failure", failureConnect)
		d.expect("StateChanged", stateStopped)
		d.expectEnd()
	})
	t.Run("lost", func(t *testing.T) {
		d := newDesk(t)
		d.connect()
		d.tell(d.bridge(owner), nm.Lost)
		d.expectEnd() // and the name is gone
	})
	t.Run("NetworkManager ends", func(t *testing.T) {
		d := newDesk(t)
		d.connect()
		_ = d.manager.Close()
		d.expectEnd()
	})
	t.Run("no user", func(t *testing.T) {
		d := newDesk(t)
		if err := d.call("Connect", settings{"vpn": {"data": godbus.MakeVariant(map[string]string{})}}); err == nil {
			t.Error("a profile that names nobody is connected")
		}
	})
}

// TestPolicy: the bus gives the plugin's names to the plugin's user alone.
func TestPolicy(t *testing.T) {
	file := filepath.Join(harness.ModuleRoot(t), "dbus-policy", "vpn-nm-bridge.conf")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var policy struct {
		Policies []struct {
			User  string `xml:"user,attr"`
			Allow []struct {
				Own string `xml:"own_prefix,attr"`
			} `xml:"allow"`
		} `xml:"policy"`
	}
	if err := xml.Unmarshal(text, &policy); err != nil {
		t.Fatal(err)
	}
	if len(policy.Policies) != 1 || policy.Policies[0].User != User || policy.Policies[0].Allow[0].Own != nm.ServiceType {
		t.Errorf("the policy is %+v", policy)
	}
	users, err := os.ReadFile(filepath.Join(harness.ModuleRoot(t), "systemd", "vpn-nm-bridge.sysusers.conf"))
	if err != nil || !strings.Contains(string(users), "\nu "+User+" ") {
		t.Errorf("%s is not made: %v", User, err)
	}
	plugin, err := os.ReadFile(filepath.Join(harness.ModuleRoot(t), "cmd", "vpn-nm-bridge", "vpn-nm-bridge.name"))
	if err != nil || !strings.Contains(string(plugin), "\nservice="+nm.ServiceType+"\n") {
		t.Errorf("another service is installed: %v", err)
	}

	// Nobody else may, on a bus with that file (its own user is not there).
	bus := harness.StartBus(t, harness.NewHost(t, "host"), harness.BusOptions{Policy: harness.ShippedPolicy, PolicyFiles: []string{file}})
	for _, conn := range []*godbus.Conn{bus.Dial(t), bus.DialAs(t, owner)} {
		if reply, err := conn.RequestName(name, godbus.NameFlagDoNotQueue); err == nil {
			t.Errorf("anybody may be a plugin: %v", reply)
		}
	}
}
