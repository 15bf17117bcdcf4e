package dbus_test

import (
	"errors"
	"fmt"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

func managerCall(member string, args ...any) *godbus.Message {
	m := &godbus.Message{Type: godbus.TypeMethodCall, Body: args, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant(wire.BusName),
		godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath(wire.RootPath)),
		godbus.FieldInterface:   godbus.MakeVariant(wire.ManagerInterface),
		godbus.FieldMember:      godbus.MakeVariant(member),
	}}
	if len(args) > 0 {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(args...))
	}
	return m
}

// A connection that leaves while its calls are served leaves no provider and no
// agent behind.
func TestLeavesWhileServed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(harness.Alice)
	appOf := func(i int) string { return fmt.Sprint(app, i) }
	const rounds = 100
	for i := range rounds {
		conn := b.bus.DialRaw(t, harness.Alice)
		known := harness.Encode(t, managerCall("ListConfigs"), 2)
		if _, err := conn.Write(known); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		var all []byte
		for n, m := range []*godbus.Message{
			managerCall("RegisterProvider", appOf(i), dict{}), managerCall("RegisterAgent", dict{}),
		} {
			m.Flags = godbus.FlagNoReplyExpected
			all = append(all, harness.Encode(t, m, uint32(3+n))...)
		}
		if _, err := conn.Write(all); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	for i := range rounds {
		harness.Eventually(t, harness.Timeout, "the provider is gone", func() error {
			return c.manager("RegisterProvider", appOf(i), dict{}).Err
		})
		c.must(c.manager("UnregisterProvider", appOf(i), dict{}))
	}
	harness.Eventually(t, harness.Timeout, "the agents are gone", func() error {
		if !b.manager.Idle() {
			return errors.New("somebody is there")
		}
		return nil
	})
}
