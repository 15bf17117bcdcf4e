package driver_test

import (
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
