package dbus_test

import (
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Who has called before the name is given back is answered; who calls then finds
// nobody, so that the bus can start another.
func TestRelease(t *testing.T) {
	b := newBench(t)
	p := b.client(harness.Alice)
	p.must(p.manager("ListConfigs"))
	// The bus answers in the order in which it was asked.
	var before []*godbus.Call
	for range 10 {
		before = append(before, p.Object(wire.BusName, wire.RootPath).Go(wire.ManagerInterface+".ListConfigs", 0, nil))
	}
	p.must(p.BusObject().Call("org.freedesktop.DBus.GetId", 0))
	if err := b.server.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, call := range before {
		p.must(<-call.Done)
	}
	e, _ := p.manager("ListConfigs").Err.(godbus.Error)
	if !strings.HasPrefix(e.Name, "org.freedesktop.DBus.Error.") {
		t.Errorf("afterwards: %q", e.Name)
	}
	if err := b.server.Release(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
}
