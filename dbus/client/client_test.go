package client_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
	"github.com/vpnprovider/vpnproviderd/dbus/stream/streamtest"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

const app = "com.example.Demo"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dial connects a client that is closed with the test.
func dial(t *testing.T, address string, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), append(opts, client.WithAddress(address))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// patience is how long a test waits for what must happen.
const patience = time.Minute

// take waits for the next value of a channel.
func take[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-from:
		if !ok {
			t.Fatalf("channel of %T closed", v)
		}
		return v
	case <-time.After(patience):
		var v T
		t.Fatalf("no %T within %v", v, patience)
		return v
	}
}

// closed waits for the end of a channel.
func closed[T any](t *testing.T, from <-chan T) {
	t.Helper()
	select {
	case v, ok := <-from:
		if ok {
			t.Fatalf("got %+v, want the channel closed", v)
		}
	case <-time.After(patience):
		t.Fatalf("not closed within %v", patience)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func equal(t *testing.T, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("- want, + got:\n%s", diff)
	}
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// Anybody on the bus can send a client a signal. None ends it, whatever godbus
// thinks of it.
func TestHostileSignals(t *testing.T) {
	address := clienttest.Bus(t)
	service := clienttest.Start(t, address)
	c := dial(t, address)
	if _, err := c.RegisterProvider(t.Context(), app, client.ProviderOptions{}); err != nil {
		t.Fatal(err)
	}
	streamtest.Signals(t, streamtest.Dial(t, address), service.Member(app))
	if _, err := c.ListConfigs(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDialGivesUpOnABusThatDoesNotAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Dial(ctx, client.WithAddress("unix:path="+path)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial: %v", err)
	}
	if _, err := client.Dial(t.Context(), client.WithAddress("unix:path="+path+".none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Dial without a bus: %v", err)
	}
}

func TestWithoutDaemon(t *testing.T) {
	c := dial(t, clienttest.Bus(t))
	_, err := c.ListConfigs(t.Context())
	if !errors.Is(err, client.ErrNotRunning) || !strings.Contains(err.Error(), "vpnproviderd is not running") {
		t.Errorf("ListConfigs: %v", err)
	}
	if _, err := c.RegisterProvider(t.Context(), app, client.ProviderOptions{}); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("RegisterProvider: %v", err)
	}
	if _, err := c.Watch(t.Context()); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("Watch: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.ListConfigs(t.Context()); !errors.Is(err, client.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestErrors(t *testing.T) {
	address := clienttest.Bus(t)
	service := clienttest.Start(t, address)
	c := dial(t, address)
	for name, want := range map[string]error{
		wire.ErrInvalidParameter:                      client.ErrInvalidParameter,
		wire.ErrNotAuthorized:                         client.ErrNotAuthorized,
		wire.ErrNotOwner:                              client.ErrNotOwner,
		wire.ErrNotFound:                              client.ErrNotFound,
		wire.ErrAlreadyExists:                         client.ErrAlreadyExists,
		wire.ErrWrongState:                            client.ErrWrongState,
		wire.ErrLimitExceeded:                         client.ErrLimitExceeded,
		wire.ErrBusy:                                  client.ErrBusy,
		wire.ErrNotSupported:                          client.ErrNotSupported,
		wire.ErrProviderNotRunning:                    client.ErrProviderNotRunning,
		wire.ErrTimeout:                               client.ErrTimeout,
		wire.ErrFailed:                                client.ErrFailed,
		"org.freedesktop.DBus.Error.Spawn.ExecFailed": client.ErrNotRunning,
	} {
		service.Fail("Manager.ListConfigs", name, "because of the test")
		_, err := c.ListConfigs(t.Context())
		var e *client.Error
		if !errors.Is(err, want) || !errors.As(err, &e) || e.Name != name || !strings.Contains(err.Error(), "because of the test") {
			t.Errorf("%s: %v", name, err)
		}
		if name != wire.ErrNotFound && errors.Is(err, client.ErrNotFound) {
			t.Errorf("%s is ErrNotFound", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.ListConfigs(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := c.Config("not a path").Properties(t.Context()); err == nil {
		t.Error("an invalid path was accepted")
	}
	if _, err := c.CreateConfig(t.Context(), app, "bad \xff name", client.ConfigOptions{}); err == nil {
		t.Error("invalid UTF-8 was accepted")
	}
	if _, err := c.CreateConfig(t.Context(), app, "x", client.ConfigOptions{Data: map[string]any{"k": struct{}{}}}); err == nil || !strings.Contains(err.Error(), `"k"`) {
		t.Errorf("CreateConfig: %v", err)
	}
	if _, err := c.ListConfigs(t.Context()); err == nil {
		t.Error("the ordered fault is gone")
	}
}

func TestConfigs(t *testing.T) {
	address := clienttest.Bus(t)
	clienttest.Start(t, address)
	c := dial(t, address)
	ctx := t.Context()
	data := map[string]any{
		"text": "ü", "flag": true, "number": int64(-5), "many": []string{"a", "b"},
		"mixed": []any{"x", int64(1), map[string]any{"deep": 1.5}},
	}
	cfg, err := c.CreateConfig(ctx, app, "Work", client.ConfigOptions{Data: data, AutoConnect: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := clienttest.ConfigPath(app, "Work"); cfg.Path() != want {
		t.Errorf("path %s, want %s", cfg.Path(), want)
	}
	p, err := cfg.Properties(ctx)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, p, client.ConfigProperties{
		Path: cfg.Path(), App: app, Name: "Work", Owner: uint32(os.Getuid()), Source: client.SourcePlatform,
		State: client.StateIdle, Data: data, AutoConnect: true, LastConnected: time.UnixMicro(1700000000000000),
	})
	if _, err := c.CreateConfig(ctx, app, "Work", client.ConfigOptions{}); !errors.Is(err, client.ErrAlreadyExists) {
		t.Errorf("second CreateConfig: %v", err)
	}
	off := false
	if err := cfg.Update(ctx, client.ConfigUpdate{AutoConnect: &off, Data: map[string]any{"n": 1}}); err != nil {
		t.Fatal(err)
	}
	if p, _ = cfg.Properties(ctx); p.AutoConnect || p.Data["n"] != int64(1) || len(p.Data) != 1 {
		t.Errorf("after Update: %+v", p)
	}
	found, err := c.FindConfig(ctx, app, "Work")
	if err != nil || found.Path() != cfg.Path() {
		t.Errorf("FindConfig: %v, %v", found, err)
	}
	list, err := c.ListConfigs(ctx)
	equal(t, list, []client.ConfigInfo{{cfg.Path(), app, "Work", client.StateIdle}})
	if err != nil {
		t.Error(err)
	}
	if err := cfg.ShowConfigureDialog(ctx); !errors.Is(err, client.ErrProviderNotRunning) {
		t.Errorf("ShowConfigureDialog: %v", err)
	}
	if _, err := cfg.Connect(ctx); !errors.Is(err, client.ErrProviderNotRunning) {
		t.Errorf("Connect: %v", err)
	}
	if err := cfg.Remove(ctx); err != nil {
		t.Error(err)
	}
	if _, err := cfg.Properties(ctx); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("after Remove: %v", err)
	}
	m, err := c.Properties(ctx)
	equal(t, m, client.ManagerProperties{Version: "test", Features: []string{"packet"}, Health: []client.Health{{"test", "info", "this is not the daemon"}}})
	if err != nil {
		t.Error(err)
	}
}

func TestInteraction(t *testing.T) {
	address := clienttest.Bus(t)
	service := clienttest.Start(t, address)
	for _, want := range []bool{true, false} {
		var opts []client.Option
		if !want {
			opts = append(opts, client.WithoutInteraction())
		}
		if _, err := dial(t, address, opts...).ListConfigs(t.Context()); err != nil || service.Interactive() != want {
			t.Errorf("interactive %v, want %v; %v", service.Interactive(), want, err)
		}
	}
}

// Anybody on the bus can send what looks like the daemon's signals, with
// descriptors too.
func TestForgedSignals(t *testing.T) {
	address := clienttest.Bus(t)
	service := clienttest.Start(t, address)
	c := dial(t, address)
	p, err := c.RegisterProvider(t.Context(), app, client.ProviderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	forger, err := godbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer forger.Close()
	target := service.Member(app)
	before := openFDs(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	path := godbus.ObjectPath(clienttest.ConfigPath(app, "Work"))
	for range 100 {
		forger.Send(clienttest.Signal(target, wire.RootPath, wire.ManagerInterface+".ConfigRemoved", path, "Work"), nil)
		forger.Send(clienttest.Signal(target, wire.SessionRoot+"/1", wire.SessionInterface+".PlatformMessage", path, "connected", ""), nil)
		forger.Send(clienttest.Signal(target, "/", "org.freedesktop.DBus.NameOwnerChanged", wire.BusName, service.Name(), forger.Names()[0]), nil)
		forger.Send(clienttest.Signal(target, "/", "com.example.Gift", godbus.UnixFD(null.Fd()), godbus.MakeVariant(godbus.UnixFD(null.Fd()))), nil)
	}
	// The answer says that the bus has delivered what came before it.
	if err := forger.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
		t.Fatal(err)
	}
	service.AddConfig(app, "Real", nil)
	if e, ok := take(t, p.Events()).(client.ConfigCreated); !ok || e.Name != "Real" {
		t.Errorf("got %+v", e)
	}
	eventually(t, "the descriptors are closed", func() bool { return openFDs(t) <= before+1 })
}

func TestBusIsLost(t *testing.T) {
	address, kill := clienttest.BusToKill(t)
	clienttest.Start(t, address)
	c := dial(t, address)
	p, err := c.RegisterProvider(t.Context(), app, client.ProviderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	changes, err := c.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := take(t, changes); got.Kind != client.Synced {
		t.Errorf("got %+v", got)
	}
	kill()
	closed(t, p.Events())
	closed(t, changes)
	if !errors.Is(p.Err(), client.ErrClosed) {
		t.Errorf("Err: %v", p.Err())
	}
	if _, err := c.ListConfigs(t.Context()); !errors.Is(err, client.ErrClosed) && !errors.Is(err, io.EOF) {
		t.Errorf("ListConfigs: %v", err)
	}
	if _, err := c.RegisterProvider(t.Context(), app, client.ProviderOptions{}); !errors.Is(err, client.ErrClosed) {
		t.Errorf("RegisterProvider: %v", err)
	}
}
