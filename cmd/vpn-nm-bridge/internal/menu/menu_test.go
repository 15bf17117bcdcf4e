package menu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/nm"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// world is a stand-in for NetworkManager and vpnproviderd. Everything that
// the menu asks of either is noted.
type world struct {
	t       *testing.T
	changes chan client.Change
	events  chan nm.Event
	stop    context.CancelFunc
	done    chan error

	next     int
	profiles map[godbus.ObjectPath]nm.Settings
	active   map[godbus.ObjectPath]nm.Active
	refuse   error            // of Activate and AddProfile
	answers  map[string]error // of Connect
	hold     chan struct{}    // Connect waits for it, where there is one
	notes    []string
}

const (
	workPath = "/org/vpnprovider1/config/592c964e9d4a124ba3227d2648208207"
	homePath = "/org/vpnprovider1/config/ffffffffffffffffffffffffffffffff"
)

// start has a menu with work and home, both idle, with NetworkManager running
// or not. It runs in a bubble of package synctest.
func start(t *testing.T, running bool, prepare ...func(*world)) *world {
	t.Helper()
	w := &world{
		t: t, changes: make(chan client.Change), events: make(chan nm.Event), done: make(chan error, 1),
		profiles: make(map[godbus.ObjectPath]nm.Settings), active: make(map[godbus.ObjectPath]nm.Active), answers: make(map[string]error),
	}
	for _, f := range prepare {
		f(w)
	}
	m := New(Options{User: User{"alice", 1000}, Profiles: w, Activations: w, Configs: w, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	w.stop = cancel
	go func() { w.done <- m.Run(ctx, running, w.changes, w.events) }()
	w.config(client.Added, workPath, client.StateIdle, "")
	w.config(client.Added, homePath, client.StateIdle, "")
	w.changes <- client.Change{Kind: client.Synced}
	synctest.Wait()
	return w
}

func (w *world) end() {
	w.t.Helper()
	w.stop()
	if err := <-w.done; err != nil {
		w.t.Errorf("it failed: %v", err)
	}
}

// config is a config in a state. With one that is active goes a session.
func (w *world) config(kind client.ChangeKind, path string, state client.State, reason string) {
	name := map[string]string{workPath: "work", homePath: "home"}[path]
	p := client.ConfigProperties{Path: path, App: "com.example.App", Name: name, Owner: 1000, State: state, FailureReason: reason}
	if state.Active() {
		p.Session = fmt.Sprintf("/org/vpnprovider1/session/%d", w.next)
	}
	w.changes <- client.Change{Kind: kind, Config: &p}
	synctest.Wait()
}

// state is config for the one that most is about.
func (w *world) state(state client.State) { w.config(client.Changed, workPath, state, "") }

// newSession makes the next states those of another session.
func (w *world) newSession() { w.next++ }

func (w *world) event(e nm.Event) {
	w.events <- e
	synctest.Wait()
}

// wish is the user who switches on work in the menu.
func (w *world) wish() godbus.ObjectPath {
	w.t.Helper()
	path := w.activate(w.profile())
	w.event(nm.Event{Kind: nm.ActiveList, Paths: slices.Collect(maps.Keys(w.active))})
	return path
}

// vpn is the activation with the plugin in another state.
func (w *world) vpn(path godbus.ObjectPath, state nm.VPNState) {
	w.event(nm.Event{Kind: nm.VPNChanged, Path: path, VPN: state})
}

// over is the end of an activation.
func (w *world) over(path godbus.ObjectPath, reason nm.Reason) {
	delete(w.active, path)
	w.event(nm.Event{Kind: nm.ActiveChanged, Path: path, State: nm.Deactivating, Reason: reason})
	w.event(nm.Event{Kind: nm.ActiveChanged, Path: path, State: nm.Deactivated, Reason: reason})
}

// expect wants what was asked since the last time.
func (w *world) expect(want ...string) {
	w.t.Helper()
	if !slices.Equal(w.notes, want) {
		w.t.Errorf("asked for\n\t%s\nwant\n\t%s", strings.Join(w.notes, "\n\t"), strings.Join(want, "\n\t"))
	}
	w.notes = nil
}

func (w *world) note(format string, args ...any) {
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

// profile is that of work.
func (w *world) profile() godbus.ObjectPath {
	w.t.Helper()
	for path, s := range w.profiles {
		if s.Data()[configKey] == workPath {
			return path
		}
	}
	w.t.Fatal("work has no profile")
	return ""
}

func (w *world) activate(profile godbus.ObjectPath) godbus.ObjectPath {
	w.next++
	path := godbus.ObjectPath(fmt.Sprintf("/active/%d", w.next))
	w.active[path] = nm.Active{Path: path, UUID: w.profiles[profile].String("connection", "uuid"), State: nm.Activating, VPN: 1}
	return path
}

func (w *world) Profiles(context.Context) (map[godbus.ObjectPath]nm.Settings, error) {
	return maps.Clone(w.profiles), nil
}

func (w *world) AddProfile(_ context.Context, s nm.Settings) (godbus.ObjectPath, error) {
	if w.refuse != nil {
		return "", w.refuse
	}
	w.next++
	path := godbus.ObjectPath(fmt.Sprintf("/profile/%d", w.next))
	w.profiles[path] = s
	w.note("add %s", s.String("connection", "id"))
	return path, nil
}

func (w *world) UpdateProfile(_ context.Context, path godbus.ObjectPath, s nm.Settings) error {
	w.profiles[path] = s
	w.note("update %s %q", s.String("connection", "id"), s.Data()[failureKey])
	return nil
}

func (w *world) DeleteProfile(_ context.Context, path godbus.ObjectPath) error {
	w.note("delete %s", w.profiles[path].String("connection", "id"))
	delete(w.profiles, path)
	return nil
}

func (w *world) Activations(ctx context.Context) ([]nm.Active, error) {
	return w.Read(ctx, slices.Collect(maps.Keys(w.active))), nil
}

func (w *world) Read(_ context.Context, paths []godbus.ObjectPath) (found []nm.Active) {
	for _, path := range paths {
		if a, ok := w.active[path]; ok {
			found = append(found, a)
		}
	}
	return found
}

func (w *world) Activate(_ context.Context, profile godbus.ObjectPath) (godbus.ObjectPath, error) {
	w.note("activate %s", w.profiles[profile].String("connection", "id"))
	if w.refuse != nil {
		return "", w.refuse
	}
	return w.activate(profile), nil
}

func (w *world) Deactivate(_ context.Context, active godbus.ObjectPath) error {
	w.note("deactivate %s", active)
	return nil
}

func (w *world) Tell(active godbus.ObjectPath, word nm.Word, _ string) error {
	w.note("tell %s %s", active, word)
	return nil
}

func (w *world) Connect(ctx context.Context, config string) error {
	w.note("connect %s", config[len(config)-1:])
	if w.hold != nil {
		select {
		case <-w.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return w.answers[config]
}

func (w *world) Disconnect(_ context.Context, config string) error {
	w.note("disconnect %s", config[len(config)-1:])
	return nil
}

// connected is work, connected by the user in the menu.
func (w *world) connected() godbus.ObjectPath {
	w.t.Helper()
	path := w.wish()
	w.newSession()
	w.state(client.StateConnecting)
	w.vpn(path, nm.VPNConnecting)
	w.state(client.StateConfigured)
	w.state(client.StateConnected)
	w.expect("connect 7", fmt.Sprintf("tell %s connected", path))
	w.vpn(path, 5)
	w.event(nm.Event{Kind: nm.ActiveChanged, Path: path, State: nm.Activated})
	w.expect()
	return path
}

// story is a test in a bubble, with both profiles made.
func story(tell func(w *world)) func(*testing.T) {
	return func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := start(t, true)
			slices.Sort(w.notes)
			w.expect("add home", "add work")
			tell(w)
			if !t.Failed() {
				w.end()
			}
		})
	}
}

var errRefused = errors.New("no")
