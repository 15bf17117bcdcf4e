package dbus_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// memory keeps what a server keeps.
type memory struct {
	mu   sync.Mutex
	text []byte
}

func (m *memory) keep(text []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.text = bytes.Clone(text)
	return nil
}

func (m *memory) kept() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.text)
}

// next is the service after a restart, in the same world.
func (b *bench) next(kept []byte) *bench {
	t := b.t
	t.Helper()
	b.server.Leave(b.manager.Leave)
	after := &bench{World: b.World, t: t, bus: b.bus, served: make(chan error, 1), log: b.log}
	var err error
	after.server, err = dbus.Dial(t.Context(), dbus.Options{Address: b.bus.Address, Log: slog.New(slog.NewTextHandler(b.log, nil)), Kept: kept})
	if err != nil {
		t.Fatal(err)
	}
	world := b.Options()
	world.Observer, world.Packets = after.server, after.server
	if after.manager, err = driver.NewManager(world); err != nil {
		t.Fatal(err)
	}
	if err := after.manager.Resume(t.Context(), b.Kept(), after.server.Alive); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { after.served <- after.server.Serve(ctx, after.manager) }()
	t.Cleanup(func() {
		cancel()
		after.manager.Shutdown()
		after.server.Close()
	})
	return after
}

// got waits for a signal of the member.
func (c *client) got(member string) *godbus.Signal {
	c.t.Helper()
	var found *godbus.Signal
	harness.Eventually(c.t, harness.Timeout, "the signal "+member, func() error {
		select {
		case found = <-c.signals:
			if found.Name == member {
				return nil
			}
		default:
		}
		return errors.New("not so far")
	})
	return found
}

// TestResume: after a restart the same connections have the same objects, and are
// told without asking again.
func TestResume(t *testing.T) {
	m := &memory{}
	b := newBench(t, func(o *dbus.Options) { o.Keep = m.keep })
	provider, listener, mute, leaver := b.client(1000), b.client(1000), b.client(1000), b.client(1000)
	provider.must(provider.manager("RegisterProvider", app, dict{}))
	leaver.must(leaver.manager("RegisterProvider", "com.example.Leaver", dict{}))
	listener.must(listener.manager("Subscribe"))
	mute.must(mute.manager("Unsubscribe"))
	var config, session godbus.ObjectPath
	provider.must(provider.manager("CreateConfig", app, "Work", dict{}), &config)
	provider.must(provider.config(config, "Connect", dict{}), &session)
	parameters := dict{"address": godbus.MakeVariant("10.8.0.2/24"), "inclusionList": godbus.MakeVariant([]string{"10.0.0.0/8"})}
	provider.must(provider.session(session, "SetParameters", parameters))

	if err := leaver.Close(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Timeout, "the connection is forgotten", func() error {
		if bytes.Contains(m.kept(), []byte(leaver.Names()[0])) {
			return errors.New(string(m.kept()))
		}
		return nil
	})
	listener.heard()
	for len(mute.signals) > 0 {
		<-mute.signals
	}
	after := b.next(m.kept())
	after.server.Idle() // which asks about the calls since
	if after.server.Idle() {
		t.Error("who has subscribed is forgotten")
	}
	provider.must(provider.session(session, "NotifyConnectionStateChanged", "connected", dict{}))
	if s := listener.got(wire.PropertiesInterface + ".PropertiesChanged"); s.Path != session && s.Path != config {
		t.Errorf("got %v", s)
	}
	provider.must(provider.session(session, "SetParameters", parameters))
	var registered []struct {
		App  string
		Info dict
	}
	provider.must(provider.manager("ListProviders"), &registered)
	if len(registered) != 1 || registered[0].App != app || registered[0].Info["registered"].Value() != true {
		t.Errorf("providers %v", registered)
	}
	provider.must(provider.session(session, "Disconnect", dict{}))
	listener.got(wire.ObjectManagerInterface + ".InterfacesRemoved")
	for len(mute.signals) > 0 {
		if s := <-mute.signals; s.Sender != "org.freedesktop.DBus" {
			t.Errorf("who wants to hear nothing gets %v", s)
		}
	}
}

// TestResumeOnAnotherBus: names of another bus are others' names.
func TestResumeOnAnotherBus(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"another bus": func(text []byte) []byte { return bytes.Replace(text, []byte(`"Bus":"`), []byte(`"Bus":"0`), 1) },
		"damaged":     func(text []byte) []byte { return text[:len(text)/2] },
		"nothing":     func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			m := &memory{}
			b := newBench(t, func(o *dbus.Options) { o.Keep = m.keep })
			c := b.client(1000)
			c.must(c.manager("RegisterProvider", app, dict{}))
			after := b.next(damage(m.kept()))
			if after.server.Alive(c.Names()[0]) {
				t.Error("the connection counts as the same")
			}
			if list := after.manager.ListProviders(driver.Caller{UID: 1000}); len(list) != 0 {
				t.Errorf("providers %v", list)
			}
		})
	}
}
