package client_test

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func watch(t *testing.T, c *client.Client) <-chan client.Change {
	t.Helper()
	changes, err := c.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

// is takes a change and compares what matters of it.
func is(t *testing.T, changes <-chan client.Change, kind client.ChangeKind, path string, state client.State, fields ...string) {
	t.Helper()
	got := take(t, changes)
	var gotPath string
	var gotState client.State
	switch {
	case got.Config != nil:
		gotPath, gotState = got.Config.Path, got.Config.State
	case got.Session != nil:
		gotPath, gotState = got.Session.Path, got.Session.State
	}
	if got.Kind != kind || gotPath != path || gotState != state || !slices.Equal(got.Fields, fields) {
		t.Fatalf("got %s %s %s %v, want %s %s %s %v", got.Kind, gotPath, gotState, got.Fields, kind, path, state, fields)
	}
}

func TestWatch(t *testing.T) {
	f := newFixture(t)
	user := dial(t, f.address)
	changes := watch(t, user)
	is(t, changes, client.Added, f.config.Path(), client.StateIdle)
	is(t, changes, client.Synced, "", "")
	s := f.connect(t)
	configFields := []string{"FailureReason", "Session", "State"}
	is(t, changes, client.Added, s.Path(), client.StateConnecting)
	is(t, changes, client.Changed, f.config.Path(), client.StateConnecting, configFields...)
	if _, err := s.SetParameters(t.Context(), client.Parameters{Addresses: prefixes("10.0.0.2/32")}); err != nil {
		t.Fatal(err)
	}
	is(t, changes, client.Changed, s.Path(), client.StateConfigured, "State")
	is(t, changes, client.Changed, f.config.Path(), client.StateConfigured, configFields...)
	got := take(t, changes)
	equal(t, got.Session.Addresses, prefixes("10.0.0.2/32"))
	equal(t, got.Session.Statistics, client.Statistics{})
	f.service.End(s.Path(), wire.ReasonTimeout)
	is(t, changes, client.Changed, s.Path(), client.StateDisconnecting, "State")
	is(t, changes, client.Changed, f.config.Path(), client.StateDisconnecting, configFields...)
	got = take(t, changes)
	if got.Config == nil || got.Config.State != client.StateFailed || got.Config.FailureReason != wire.ReasonTimeout || got.Config.Session != "" {
		t.Errorf("got %+v", got.Config)
	}
	is(t, changes, client.Removed, s.Path(), client.StateDisconnecting)

	late := watch(t, user) // a second one, which sees what is now
	is(t, late, client.Added, f.config.Path(), client.StateFailed)
	is(t, late, client.Synced, "", "")
	if err := f.config.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	is(t, late, client.Removed, f.config.Path(), client.StateFailed)
	is(t, changes, client.Removed, f.config.Path(), client.StateFailed)
}

func TestWatchOverARestart(t *testing.T) {
	f := newFixture(t)
	s := f.connect(t)
	changes := watch(t, f.client)
	is(t, changes, client.Added, f.config.Path(), client.StateConnecting)
	is(t, changes, client.Added, s.Path(), client.StateConnecting)
	is(t, changes, client.Synced, "", "")
	f.service.Stop()
	is(t, changes, client.Stopped, "", "")
	f.service.Lose(s.Path())
	f.service.Restart(f.address)
	is(t, changes, client.Removed, s.Path(), client.StateConnecting)
	is(t, changes, client.Changed, f.config.Path(), client.StateFailed, "FailureReason", "Session", "State")
	is(t, changes, client.Synced, "", "")
	other := f.service.AddConfig(app, "Other", nil)
	is(t, changes, client.Added, other, client.StateIdle)
}

// What comes while the first reading is under way is told once.
func TestWatchStartsInTheMiddleOfChanges(t *testing.T) {
	f := newFixture(t)
	const n = 500
	made := make(chan struct{})
	go func() {
		defer close(made)
		for i := range n {
			f.service.AddConfig(app, strconv.Itoa(i), nil)
		}
	}()
	var watches []<-chan client.Change
	for running := true; running && len(watches) < 30; {
		watches = append(watches, watch(t, f.client))
		select {
		case <-made:
			running = false
		default:
		}
	}
	for _, changes := range watches {
		seen := make(map[string]bool)
		for len(seen) <= n { // with that of the fixture
			if change := take(t, changes); change.Kind == client.Added {
				if seen[change.Config.Name] {
					t.Fatalf("%s was added twice", change.Config.Name)
				}
				seen[change.Config.Name] = true
			}
		}
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := f.client.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for range changes {
	}
	if _, err := f.client.ListConfigs(t.Context()); err != nil {
		t.Errorf("the client ended, too: %v", err)
	}
}
