package client_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// What passes, as a polkit that is restarted too, does not end the sessions.
func TestDaemonRefusesForAWhile(t *testing.T) {
	for _, name := range []string{wire.ErrTimeout, wire.ErrLimitExceeded} {
		f := newFixture(t)
		s := f.connect(t)
		f.service.Stop()
		f.service.Fail("Manager.RegisterProvider", name, "not now")
		f.service.Restart(f.address)
		time.Sleep(300 * time.Millisecond)
		if err := f.provider.Err(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.service.Fail("Manager.RegisterProvider", "", "")
		path := f.service.Begin(f.config.Path()) // told by the second attempt
		if e, ok := take(t, f.provider.Events()).(client.SessionStarted); !ok || e.Session.Path() != path {
			t.Fatalf("%s: got %+v, %v", name, e, f.provider.Err())
		}
		f.service.Message(s.Path(), wire.MessageLinkDown, "")
		equal(t, take(t, s.Messages()), client.Message{Kind: client.MessageLinkDown})
	}
}

func TestDaemonRefusesForGood(t *testing.T) {
	f := newFixture(t)
	f.service.Stop()
	f.service.Fail("Manager.RegisterProvider", wire.ErrNotAuthorized, "no")
	f.service.Restart(f.address)
	closed(t, f.provider.Events())
	if err := f.provider.Err(); !errors.Is(err, client.ErrNotAuthorized) {
		t.Errorf("Err: %v", err)
	}
}

// giveUp registers with a daemon that takes longer than the program waits.
func (f *fixture) giveUp(t *testing.T) {
	t.Helper()
	f.service.Delay("Manager.RegisterProvider", 300*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := f.client.RegisterProvider(ctx, app, client.ProviderOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("RegisterProvider: %v", err)
	}
}

// A daemon that registers us after we gave up is asked to forget it.
func TestRegisterGivenUpIsUndone(t *testing.T) {
	f := newFixture(t)
	if err := f.provider.Unregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.service.Delay("Manager.UnregisterProvider", 600*time.Millisecond)
	f.giveUp(t)
	eventually(t, "the daemon registers the app", func() bool { return f.service.Member(app) != "" })
	eventually(t, "the daemon forgets the app", func() bool { return f.service.Member(app) == "" })
}

// A session that began while nobody listened is told to the next provider.
func TestRegisterAfterGivingUp(t *testing.T) {
	f := newFixture(t)
	if err := f.provider.Unregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.service.Fail("Manager.UnregisterProvider", wire.ErrNotFound, "it came before the answer of polkit")
	f.giveUp(t)
	eventually(t, "the daemon registers the app", func() bool { return f.service.Member(app) != "" })
	handle, err := f.config.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.service.Delay("Manager.RegisterProvider", 0)
	p, err := f.client.RegisterProvider(t.Context(), app, client.ProviderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := take(t, p.Events()).(client.SessionStarted); !ok || e.Session.Path() != handle.Path() {
		t.Errorf("got %+v", e)
	}
}

// So is one that a daemon kept which came back too late.
func TestRegisterAfterTheDaemonWasAway(t *testing.T) {
	f := newFixture(t, client.WithGrace(50*time.Millisecond))
	s := f.connect(t)
	f.service.Stop()
	closed(t, f.provider.Events())
	f.service.Restart(f.address)
	p, err := f.client.RegisterProvider(t.Context(), app, client.ProviderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := take(t, p.Events()).(client.SessionStarted); !ok || e.Session.Path() != s.Path() {
		t.Errorf("got %+v", e)
	}
}

// Sessions whose messages nobody reads leave nothing behind.
func TestUnreadMessagesLeaveNothing(t *testing.T) {
	for name, handle := range map[string]func(context.Context, *client.Session) error{
		"never asked for": func(ctx context.Context, _ *client.Session) error { <-ctx.Done(); return nil },
		"not read":        func(ctx context.Context, s *client.Session) error { s.Messages(); <-ctx.Done(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			served := make(chan error, 1)
			go func() { served <- f.provider.Serve(t.Context(), handle) }()
			before := runtime.NumGoroutine()
			for range 40 {
				s, err := f.config.Connect(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				f.service.End(s.Path(), "")
			}
			eventually(t, "the goroutines end", func() bool { return runtime.NumGoroutine() < before+20 })
			if err := f.provider.Unregister(t.Context()); err != nil {
				t.Error(err)
			}
			if err := take(t, served); err != nil {
				t.Error(err)
			}
		})
	}
}

// Messages that are asked for only after the end are all there.
func TestMessagesAfterTheEnd(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	f.service.Message(s.Path(), wire.MessageLinkDown, "")
	f.service.End(s.Path(), "")
	equal(t, take(t, s.Messages()), client.Message{Kind: client.MessageLinkDown})
	equal(t, take(t, s.Messages()), client.Message{Kind: client.MessageDisconnected})
	closed(t, s.Messages())
	untaken := f.connect(t)
	if err := f.client.Close(); err != nil {
		t.Error(err)
	}
	closed(t, untaken.Messages())
}

// A daemon that leaves gives up its name before its last signals.
func TestDaemonLeaves(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	changes := watch(t, f.client)
	f.service.Leave()
	for take(t, changes).Kind != client.Stopped {
	}
	f.service.AddConfig(app, "late", nil)
	f.service.End(s.Path(), wire.ReasonUplinkLost)
	if e, ok := take(t, f.provider.Events()).(client.ConfigCreated); !ok || e.Name != "late" {
		t.Errorf("got %+v", e)
	}
	equal(t, take(t, s.Messages()), client.Message{Kind: client.MessageDisconnected, Error: wire.ReasonUplinkLost})
	select {
	case c := <-changes:
		t.Errorf("a change after Stopped: %+v", c)
	case <-time.After(50 * time.Millisecond):
	}
	f.service.Stop()
	f.service.Restart(f.address)
	for c := take(t, changes); c.Config == nil || c.Config.Name != "late"; c = take(t, changes) {
	}
}

// root, who sees all configs, is handed its own sessions alone.
func TestForeignSessionsAreNotTaken(t *testing.T) {
	f := newFixture(t)
	f.service.Stop()
	foreign := f.service.Begin(f.service.AddForeignConfig(app, "Theirs"))
	own := f.service.Begin(f.config.Path())
	f.service.Restart(f.address)
	if e, ok := take(t, f.provider.Events()).(client.SessionStarted); !ok || e.Session.Path() != own {
		t.Errorf("got %+v, the foreign one is %s", e, foreign)
	}
	f.service.UIEvent(app, wire.ShowAddDialog, "")
	if e, ok := take(t, f.provider.Events()).(client.UIEvent); !ok {
		t.Errorf("got %+v, the foreign one is %s", e, foreign)
	}
	configs, err := f.provider.Configs(t.Context())
	if err != nil || len(configs) != 1 || configs[0].Path != f.config.Path() {
		t.Errorf("Configs: %+v, %v", configs, err)
	}
}
