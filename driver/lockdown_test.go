package driver_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/driver"
)

func (b *bench) setLockdown(by driver.Caller, id driver.ConfigID, on bool) error {
	return b.UpdateConfig(b.t.Context(), by, id, driver.ConfigChanges{Lockdown: &on})
}

func (b *bench) mustLockdown(by driver.Caller, id driver.ConfigID, on bool) {
	b.t.Helper()
	if err := b.setLockdown(by, id, on); err != nil {
		b.t.Fatal(err)
	}
}

// locked says what is in force, and what would be after a restart.
func (b *bench) locked(when string, now, next bool) {
	b.t.Helper()
	if b.Locked() != now {
		b.t.Errorf("%s: locked %v", when, b.Locked())
	}
	if again := b.restart(); again.WantsLockdown() != next || b.WantsLockdown() != next {
		b.t.Errorf("%s: after a restart it is wanted: %v", when, again.WantsLockdown())
	}
}

func (b *bench) restart() *driver.Manager {
	b.t.Helper()
	m, err := driver.NewManager(b.Options())
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

// A lockdown is in force while any config wants it.
func TestLockdown(t *testing.T) {
	b := newBench(t)
	other := b.create(provider, "Home")
	b.Log()
	b.mustLockdown(ui, b.work, true)
	b.locked("on", true, true)
	if log := b.Log(); !slices.Equal(log, []string{`lock`, `config Work: idle session 0 ""`, `health ["lockdown info"]`}) {
		t.Errorf("told %q", log)
	}
	if c, err := b.Config(ui, b.work); err != nil || !c.Lockdown {
		t.Errorf("%+v, %v", c, err)
	}
	if b.Idle() {
		t.Error("idle while locked")
	}
	b.mustLockdown(ui, b.work, true)
	b.mustLockdown(ui, other, true)
	b.mustLockdown(ui, b.work, false)
	b.locked("one of two off", true, true)
	b.mustLockdown(ui, b.work, false)
	b.locked("it is off already", true, true)
	b.Log()
	b.mustLockdown(ui, other, false)
	b.locked("off", false, false)
	if log := b.Log(); !slices.Equal(log, []string{`config Home: idle session 0 ""`, `unlock`, `health []`}) {
		t.Errorf("told %q", log)
	}
	kind(t, b.setLockdown(stranger, b.work, true), driver.KindNotFound)
	b.locked("a stranger's", false, false)

	// It holds through a session and beyond.
	b.mustLockdown(ui, b.work, true)
	b.connect(b.work)
	if err := b.Disconnect(ui, b.work); err != nil {
		t.Fatal(err)
	}
	b.Shutdown()
	b.locked("after a session and a shutdown", true, true)
}

// Whatever fails, it is as it was.
func TestLockdownFails(t *testing.T) {
	for _, on := range []bool{false, true} {
		for _, what := range []string{"lock", "unlock", "save"} {
			b := newBench(t)
			b.mustLockdown(ui, b.work, on)
			b.Fail(what, true)
			err := b.setLockdown(ui, b.work, !on)
			if what == "lock" && on || what == "unlock" && !on {
				if err != nil {
					t.Errorf("%s, which is not needed: %v", what, err)
				}
				continue
			}
			kind(t, err, driver.KindFailed)
			b.Fail(what, false)
			b.locked(what+" fails", on, on)
			if c, err := b.Config(ui, b.work); err != nil || c.Lockdown != on {
				t.Errorf("%s: %+v, %v", what, c, err)
			}
		}
	}
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	release := b.Hold("lock")
	done := make(chan error, 1)
	go func() {
		on := true
		done <- b.UpdateConfig(ctx, ui, b.work, driver.ConfigChanges{Lockdown: &on})
	}()
	cancel()
	if err := <-done; err == nil {
		t.Error("cancelled, and no error")
	}
	release()
	b.locked("cancelled", false, false)
}

// A lockdown outlives its config: whoever may remove that may not end it.
func TestLockdownWithoutConfig(t *testing.T) {
	for name, remove := range map[string]func(b *bench) error{
		"destroyed by its provider": func(b *bench) error { return b.DestroyConfig(provider, b.work) },
		"removed":                   func(b *bench) error { return b.RemoveConfig(ui, b.work) },
		"forgotten":                 func(b *bench) error { return b.ForgetProvider(provider, app) },
		"removed while the provider is away": func(b *bench) error {
			b.ConnectionGone(provider.Conn)
			return b.RemoveConfig(ui, b.work)
		},
	} {
		b := newBench(t)
		b.mustLockdown(ui, b.work, true)
		if err := remove(b); err != nil {
			t.Fatal(err)
		}
		b.locked(name, true, true)
		if log := strings.Join(b.Log(), "\n"); !strings.HasSuffix(log, `health ["lockdown warning"]`) {
			t.Errorf("%s: told %s", name, log)
		}
		// The provider learns of the removal once, if it is to learn of it.
		for i := range 2 {
			_, err := b.RegisterProvider(provider, app, driver.ProviderOptions{}, true)
			if err != nil {
				t.Fatal(err)
			}
			told := slices.Contains(b.Log(), ":1.1 gets removed Work")
			if told != (i == 0 && strings.HasSuffix(name, "away")) {
				t.Errorf("%s, %d: told: %v", name, i, told)
			}
		}
		b.locked(name, true, true)

		// The same config again is still in lockdown.
		b.work = b.create(provider, "Work")
		if c, err := b.Config(ui, b.work); err != nil || !c.Lockdown {
			t.Errorf("%s: made again it is %+v, %v", name, c, err)
		}
		if err := remove(b); err != nil {
			t.Fatal(err)
		}
		kind(t, b.Unlock(t.Context(), stranger, false), driver.KindNotAuthorized)
		b.locked(name, true, true)
		if err := b.Unlock(t.Context(), ui, false); err != nil {
			t.Fatal(err)
		}
		b.locked("unlocked", false, false)
		if len(b.restart().Configs(root)) != 0 {
			t.Error("a config came back")
		}
	}
}

func TestUnlock(t *testing.T) {
	b := newBench(t)
	id, err := b.CreateConfig(stranger, driver.NewConfig{App: app, Name: "theirs", Owner: stranger.UID})
	if err != nil {
		t.Fatal(err)
	}
	b.mustLockdown(ui, b.work, true)
	b.mustLockdown(stranger, id, true)
	kind(t, b.Unlock(t.Context(), ui, false), driver.KindNotAuthorized)
	b.Fail("unlock", true)
	kind(t, b.Unlock(t.Context(), root, false), driver.KindFailed)
	b.Fail("unlock", false)
	b.locked("refused", true, true)
	b.Fail("save", true)
	kind(t, b.Unlock(t.Context(), ui, true), driver.KindFailed)
	b.Fail("save", false)
	b.locked("cannot be written down", false, true)
	if err := b.Unlock(t.Context(), ui, true); err != nil {
		t.Fatal(err)
	}
	b.locked("unlocked", false, false)

	// One of which nothing is known but that it is in force.
	if err := b.Lock(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := b.Unlock(t.Context(), stranger, false); err != nil {
		t.Fatal(err)
	}
	b.locked("unlocked", false, false)
}

// Another config opens a way out that the lockdown was not made for.
func TestConnectPassesLockdown(t *testing.T) {
	b := newBench(t)
	other := b.create(provider, "Home")
	asked := 0
	connect := func(id driver.ConfigID, err error) error {
		_, got := b.Connect(t.Context(), ui, id, driver.Connect{PassLockdown: func(context.Context) error {
			asked++
			return err
		}})
		return got
	}
	no := driver.Errorf(driver.KindNotAuthorized, "no")
	for _, c := range []struct {
		when string
		id   driver.ConfigID
		lock bool
		err  error
		want int
	}{
		{"no lockdown", other, false, no, 0},
		{"the config's own", b.work, true, no, 0},
		{"another's", other, true, nil, 1},
	} {
		asked = 0
		b.mustLockdown(ui, b.work, c.lock)
		if err := connect(c.id, c.err); err != nil || asked != c.want {
			t.Errorf("%s: %v, asked %d times", c.when, err, asked)
		}
		if err := b.Disconnect(ui, c.id); err != nil {
			t.Fatal(err)
		}
	}
	kind(t, connect(other, no), driver.KindNotAuthorized)
	if n := len(b.Sessions(root)); n != 0 {
		t.Errorf("%d sessions", n)
	}
}

func TestHealth(t *testing.T) {
	b := newBench(t)
	bad := []driver.Problem{{Code: driver.ProblemNetwork, Severity: driver.SeverityError, Text: "it is broken"}}
	b.SetHealth(bad)
	b.SetHealth(slices.Clone(bad))
	b.mustLockdown(ui, b.work, true)
	b.SetHealth(nil)
	var told []string
	for _, line := range b.Log() {
		if strings.HasPrefix(line, "health") {
			told = append(told, line)
		}
	}
	want := []string{`health ["network error"]`, `health ["lockdown info" "network error"]`, `health ["lockdown info"]`}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Error(diff)
	}
	b.View(stranger, func(v driver.View) {
		if h := v.Health(); len(h) != 1 || !strings.HasSuffix(h[0].Text, "through the tunnel") {
			t.Errorf("health %+v", h)
		}
	})
}
