package dbus_test

import (
	"net"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Somebody asks for much, over several connections, and reads nothing of it.
// dbus-daemon keeps that, and takes nothing more from the service once it is
// 127 MiB. The service sees to it that it never is, and serves the others.
func TestNobodyReads(t *testing.T) {
	b := newBench(t)
	call := harness.Encode(t, &godbus.Message{Type: godbus.TypeMethodCall, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant(wire.BusName),
		godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath(wire.RootPath)),
		godbus.FieldInterface:   godbus.MakeVariant(wire.IntrospectableInterface),
		godbus.FieldMember:      godbus.MakeVariant("Introspect"),
	}}, 2)
	const enough = 10_000 // calls of each connection: 75 MB of answers
	var asking sync.WaitGroup
	for range 4 {
		hostile := b.bus.DialRaw(t, harness.Alice)
		t.Cleanup(func() { hostile.Close() })
		asking.Go(func() { ask(hostile, call, enough) })
	}
	asking.Wait()
	bob := b.client(harness.Bob)
	for range 200 {
		begun := time.Now()
		bob.must(bob.manager("ListConfigs"))
		if took := time.Since(begun); took > harness.Timeout/2 {
			t.Errorf("another user waited %v", took)
		}
	}
	// And who reads gets everything, whatever others do.
	for range 1000 {
		bob.must(bob.call(wire.RootPath, wire.IntrospectableInterface+".Introspect"))
	}
}

// ask sends a call so often, and not so fast that the bus refuses them.
func ask(conn net.Conn, call []byte, times int) {
	for range times {
		if _, err := conn.Write(call); err != nil {
			return
		}
		time.Sleep(500 * time.Microsecond)
	}
}
