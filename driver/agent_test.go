package driver_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver"
)

// An app that does not run is started by the user's agents, once for all who
// wait for it.
func TestProviderIsStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.ConnectionGone(provider.Conn)
		b.RegisterAgent(ui)
		b.RegisterAgent(stranger)
		b.Log()
		var waited atomic.Int32
		done := make(chan error)
		for range 2 {
			go func() {
				_, err := b.Connect(t.Context(), ui, b.work, driver.Connect{Waiting: func() { waited.Add(1) }})
				done <- err
			}()
		}
		go func() { done <- b.AskToConfigure(t.Context(), ui, b.work, "showConfigureDialog", func() {}) }()
		synctest.Wait()
		b.observed(":1.2 gets start com.example.Demo")
		time.Sleep(19 * time.Second)
		if _, err := b.RegisterProvider(provider, app, driver.ProviderOptions{}, false); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n := waited.Load(); n < 2 {
			t.Errorf("%d calls waited", n)
		}
		b.state(driver.Connecting, "")
		b.Shutdown()
	})
}

func TestProviderDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.ConnectionGone(provider.Conn)
		b.RegisterAgent(ui)
		start := time.Now()
		_, err := b.Connect(t.Context(), ui, b.work, driver.Connect{})
		kind(t, err, driver.KindProviderNotRunning)
		if took := time.Since(start); took != 20*time.Second {
			t.Errorf("it took %s", took)
		}
		b.ConnectionGone(ui.Conn)
		start = time.Now()
		_, err = b.Connect(t.Context(), ui, b.work, driver.Connect{})
		kind(t, err, driver.KindProviderNotRunning)
		if took := time.Since(start); took != 0 {
			t.Errorf("without an agent it took %s", took)
		}
		b.state(driver.Idle, "")
	})
}

func TestDisconnectCancelsTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.ConnectionGone(provider.Conn)
		b.RegisterAgent(ui)
		failed := make(chan error)
		go func() {
			_, err := b.Connect(t.Context(), ui, b.work, driver.Connect{})
			failed <- err
		}()
		synctest.Wait()
		b.Disconnect(ui, b.work)
		if err := <-failed; err == nil || err.Error() != "cancelled" {
			t.Errorf("error %v", err)
		}
	})
}

// Of the configs that were connected before the last one is, unless something
// is active.
func TestAutoConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		yes := true
		other := b.create(provider, "Other")
		auto := func() driver.SessionID {
			t.Helper()
			if err := b.AutoConnect(t.Context(), provider, app, driver.Connect{}); err != nil {
				t.Error(err)
			}
			for _, s := range b.Sessions(ui) {
				return s.ID
			}
			return 0
		}
		for _, id := range []driver.ConfigID{other, b.work} {
			if err := b.UpdateConfig(t.Context(), ui, id, driver.ConfigChanges{AutoConnect: &yes}); err != nil {
				t.Fatal(err)
			}
		}
		if s := auto(); s != 0 {
			t.Error("a config that never was connected is")
		}
		for _, id := range []driver.ConfigID{b.work, other} {
			s := b.connect(id)
			b.setParameters(s)
			b.notify(s)
			time.Sleep(time.Second)
			b.Disconnect(ui, id)
		}
		s := auto()
		if c, _ := b.Config(ui, other); c.Session != s || s == 0 {
			t.Errorf("session %d, Other has %d", s, c.Session)
		}
		if again := auto(); again != s {
			t.Errorf("another session, %d", again)
		}
		b.Shutdown()
	})
}

// byItself is a config of the app that connects by itself, next to Work.
func (b *bench) byItself(app string) driver.ConfigID {
	b.t.Helper()
	yes := true
	id, err := b.CreateConfig(provider, driver.NewConfig{App: app, Name: "Home", Owner: provider.UID})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.UpdateConfig(b.t.Context(), ui, id, driver.ConfigChanges{AutoConnect: &yes}); err != nil {
		b.t.Fatal(err)
	}
	s := b.connect(id)
	b.setParameters(s)
	b.notify(s)
	if err := b.Disconnect(ui, id); err != nil {
		b.t.Fatal(err)
	}
	return id
}

func (b *bench) session(id driver.ConfigID) driver.SessionID {
	b.t.Helper()
	c, err := b.Config(ui, id)
	if err != nil {
		b.t.Fatal(err)
	}
	return c.Session
}

// The app that a Connect has started does not connect another config by itself,
// however far that call is.
func TestAutoConnectAfterStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, waits := range []string{"", "open"} {
			b := newBench(t)
			home := b.byItself(app)
			b.ConnectionGone(provider.Conn)
			b.RegisterAgent(ui)
			release := b.Hold(waits)
			connected := make(chan driver.SessionID)
			go func() {
				s, err := b.Connect(t.Context(), ui, b.work, driver.Connect{})
				if err != nil {
					t.Error(err)
				}
				connected <- s
			}()
			synctest.Wait()
			if _, err := b.RegisterProvider(provider, app, driver.ProviderOptions{}, false); err != nil {
				t.Fatal(err)
			}
			if waits != "" {
				synctest.Wait()
			}
			done := make(chan error)
			go func() {
				done <- b.AutoConnect(t.Context(), provider, app, driver.Connect{
					Authorize: func(context.Context) error { t.Errorf("%q: asked", waits); return nil },
				})
			}()
			synctest.Wait()
			release()
			if err := <-done; err != nil {
				t.Error(err)
			}
			s := <-connected
			if b.session(b.work) != s || b.session(home) != 0 {
				t.Errorf("%q: Work has session %d, not %d; Home has %d", waits, b.session(b.work), s, b.session(home))
			}
			b.Shutdown()
		}
	})
}

// What somebody connects, or is about to, while it is on the way, AutoConnect
// leaves alone, and says nothing.
func TestAutoConnectGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, connected := range []bool{false, true} {
			b := newBench(t)
			home := b.byItself(app)
			answer, done := make(chan error), make(chan error)
			wait := func(context.Context) error { return <-answer }
			go func() { done <- b.AutoConnect(t.Context(), provider, app, driver.Connect{Authorize: wait}) }()
			synctest.Wait()
			allowed, session := make(chan error, 1), make(chan driver.SessionID, 1)
			if connected {
				allowed <- nil
			}
			go func() {
				s, err := b.Connect(t.Context(), ui, b.work, driver.Connect{Authorize: func(context.Context) error { return <-allowed }})
				if err != nil {
					t.Error(err)
				}
				session <- s
			}()
			synctest.Wait()
			answer <- nil
			if err := <-done; err != nil {
				t.Error(err)
			}
			if s := b.session(home); s != 0 {
				t.Errorf("connected %v: Home has session %d", connected, s)
			}
			if !connected {
				allowed <- nil
			}
			if s := <-session; b.session(b.work) != s {
				t.Errorf("connected %v: Work has session %d, not %d", connected, b.session(b.work), s)
			}
			b.Shutdown()
		}
	})
}

// Of two apps that come at once one is connected, and stays so.
func TestAutoConnectOfTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		const second = "com.example.Second"
		if _, err := b.RegisterProvider(provider, second, driver.ProviderOptions{}, false); err != nil {
			t.Fatal(err)
		}
		first, other := b.byItself(app), b.byItself(second)
		b.Log()
		answer, done := make(chan error), make(chan error, 2)
		for _, app := range []string{app, second} {
			go func() {
				done <- b.AutoConnect(t.Context(), provider, app, driver.Connect{
					Authorize: func(context.Context) error { return <-answer },
				})
			}()
		}
		synctest.Wait()
		close(answer)
		for range cap(done) {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if (b.session(first) == 0) == (b.session(other) == 0) {
			t.Errorf("the sessions are %d and %d", b.session(first), b.session(other))
		}
		if log := b.Log(); slices.Contains(log, "undo") {
			t.Errorf("one replaced the other: %q", log)
		}
		b.Shutdown()
	})
}
