package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/resolved/resolvedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a backend in memory. What is done to it is noted in a list that it
// shares with others.
type fake struct {
	name    Backend
	log     *[]string
	perLink bool
	left    bool
	fails   error
}

func (f *fake) Set(context.Context, routing.Resolution) error {
	*f.log = append(*f.log, "set "+string(f.name))
	f.left = true
	return f.fails
}

func (f *fake) Revert(context.Context) error {
	*f.log = append(*f.log, "revert "+string(f.name))
	if f.fails == nil {
		f.left = false
	}
	return f.fails
}

func (f *fake) Leftover(context.Context) (bool, error) { return f.left, f.fails }

func (f *fake) PerLink() bool { return f.perLink }

func (f *fake) Asker(context.Context) (uint32, error) { return 0, nil }

func (f *fake) Original() ([]netip.Addr, []string, error) { return nil, []string{string(f.name)}, nil }

// bench is a Resolver on fakes.
type bench struct {
	*Resolver
	fakes  map[Backend]*fake
	choice Backend
	log    []string
}

func newBench(t *testing.T, choice Backend) *bench {
	t.Helper()
	b := &bench{choice: choice, fakes: map[Backend]*fake{}}
	b.Resolver = &Resolver{log: slog.New(slog.NewTextHandler(t.Output(), nil)), marks: map[Backend]mark{}, backends: map[Backend]backend{}}
	for _, name := range all() {
		b.fakes[name] = &fake{name: name, log: &b.log, perLink: name == Resolved}
		b.backends[name] = b.fakes[name]
	}
	b.Resolver.choice = func(context.Context) Backend { return b.choice }
	b.choose(t.Context())
	return b
}

func (b *bench) took(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(b.log, want) {
		t.Errorf("done: %q, want %q", b.log, want)
	}
	b.log = nil
}

func (b *bench) set(t *testing.T) {
	t.Helper()
	if err := b.Set(t.Context(), routing.Resolution{}); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) leftover(t *testing.T, want bool) {
	t.Helper()
	left, err := b.Leftover(t.Context())
	if left != want || err != nil {
		t.Errorf("left %v, %v", left, err)
	}
}

func (b *bench) revert(t *testing.T) {
	t.Helper()
	if err := b.Revert(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestDelegates(t *testing.T) {
	for _, choice := range all() {
		b := newBench(t, choice)
		b.leftover(t, false)
		if b.PerLink() != (choice == Resolved) {
			t.Errorf("%s: PerLink is %v", choice, b.PerLink())
		}
		if _, domains, _ := b.Original(); domains[0] != string(choice) {
			t.Errorf("%s: the original DNS is %v", choice, domains)
		}
		b.set(t)
		b.set(t)
		b.leftover(t, true)
		b.revert(t)
		b.revert(t)
		b.leftover(t, false)
		b.took(t, "set "+string(choice), "set "+string(choice), "revert "+string(choice))
	}
}

// owner changes the choice as Watch does.
func (b *bench) owner(t *testing.T, choice Backend) {
	t.Helper()
	b.choice = choice
	b.choose(t.Context())
}

// TestSwitch: the old one is taken back before another is set. While something
// is set, the owner of the bus name alone makes it choose.
func TestSwitch(t *testing.T) {
	b := newBench(t, Resolvconf)
	b.leftover(t, false)
	b.choice = File
	b.set(t)
	b.choice = Resolvconf
	b.set(t)
	b.took(t, "set file", "set file")
	b.owner(t, Resolved)
	b.set(t)
	b.set(t)
	b.owner(t, File)
	b.set(t)
	b.took(t, "revert file", "set resolved", "set resolved", "revert resolved", "set file")
	b.choice = Resolved
	b.revert(t)
	b.took(t, "revert file")
	if !b.PerLink() {
		t.Error("the next one is not chosen yet")
	}
}

// TestSwitchFails: two at a time are never set.
func TestSwitchFails(t *testing.T) {
	b := newBench(t, File)
	b.set(t)
	b.log = nil
	b.owner(t, Resolved)
	b.fakes[File].fails = errors.New("no")
	if err := b.Set(t.Context(), routing.Resolution{}); !errors.Is(err, b.fakes[File].fails) {
		t.Errorf("%v", err)
	}
	b.took(t, "revert file")
	b.fakes[File].fails = nil
	b.set(t)
	b.took(t, "revert file", "set resolved")
}

// TestEarlierRun: what it left is taken back though this one has chosen
// another.
func TestEarlierRun(t *testing.T) {
	for _, choice := range all() {
		b := newBench(t, choice)
		b.fakes[File].left = true
		b.leftover(t, true)
		b.revert(t)
		b.leftover(t, false)
		b.took(t, "revert file")
	}
}

// TestOtherBackendFails: one that is not used does not keep us from our work.
func TestOtherBackendFails(t *testing.T) {
	b := newBench(t, Resolved)
	b.fakes[File].fails = errors.New("the backup is damaged")
	b.leftover(t, false)
	b.set(t)
	b.revert(t)
	b.took(t, "set resolved", "revert resolved")

	b = newBench(t, File)
	b.fakes[File].fails = errors.New("the backup is damaged")
	if _, err := b.Leftover(t.Context()); !errors.Is(err, b.fakes[File].fails) {
		t.Errorf("Leftover: %v", err)
	}
	if err := b.Revert(t.Context()); !errors.Is(err, b.fakes[File].fails) {
		t.Errorf("Revert: %v", err)
	}
}

// TestOtherBackendLate: one that had no time to say what it has is asked again.
func TestOtherBackendLate(t *testing.T) {
	b := newBench(t, Resolved)
	b.fakes[File].left = true
	b.fakes[File].fails = context.DeadlineExceeded
	b.leftover(t, false)
	b.fakes[File].fails = nil
	b.leftover(t, true)
	b.set(t)
	b.took(t, "revert file", "set resolved")
}

// TestPutOff: a backend that has not done everything is asked again.
func TestPutOff(t *testing.T) {
	b := newBench(t, Resolved)
	b.leftover(t, false)
	b.set(t)
	stuck := &putOff{fake: b.fakes[Resolved]}
	b.backends[Resolved] = stuck
	b.revert(t)
	b.leftover(t, true)
	stuck.free = true
	b.revert(t)
	b.leftover(t, false)
}

type putOff struct {
	*fake
	free bool
}

func (p *putOff) Revert(context.Context) error {
	p.left = !p.free
	return nil
}

func TestUnknownBackend(t *testing.T) {
	if _, err := New(t.Context(), Options{Backend: "magic", Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), `"magic"`) {
		t.Errorf("%v", err)
	}
}

const link = 7

// machine has a bus and a resolv.conf.
type machine struct {
	*Resolver
	t          *testing.T
	bus        string
	resolvConf string
}

func newMachine(t *testing.T, b Backend, target string) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{t: t, bus: clienttest.Bus(t), resolvConf: filepath.Join(dir, "resolv.conf")}
	if err := os.Symlink(target, m.resolvConf); err != nil {
		t.Fatal(err)
	}
	r, err := newResolver(t.Context(), Options{
		Backend: b, Bus: m.bus, ResolvConf: m.resolvConf, StateDir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Links: func(context.Context) ([]int, error) { return nil, nil },
	}, "/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	m.Resolver = r
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *machine) corp() routing.Resolution {
	return routing.Resolution{Link: routing.Link{Name: "vpn0", Index: link}, DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.1.2.3")}}, Full: true}
}

// follow sets again whenever that is asked for. That fails when resolved goes
// at the same time; it is asked for again then.
func (m *machine) follow() {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- m.Watch(ctx, func() {
			if err := m.Set(ctx, m.corp()); err != nil {
				m.t.Logf("Set: %v", err)
			}
		})
	}()
	m.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Errorf("Watch: %v", err)
		}
	})
}

// await waits until check finds nothing wrong.
func (m *machine) await(what string, check func() error) {
	m.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			m.t.Fatalf("%s: not in time: %v", what, err)
		}
	}
}

const stub = "/run/systemd/resolve/stub-resolv.conf"

func (m *machine) isStub() error {
	if target, err := os.Readlink(m.resolvConf); err != nil || target != stub {
		return fmt.Errorf("%q, %w", target, err)
	}
	return nil
}

func (m *machine) isOurs() error {
	if text, err := os.ReadFile(m.resolvConf); !strings.Contains(string(text), "nameserver 10.1.2.3\n") {
		return fmt.Errorf("%q, %w", text, err)
	}
	return nil
}

// TestResolvedComesAndGoes: with it, it has the settings; without, the file;
// never both.
func TestResolvedComesAndGoes(t *testing.T) {
	t.Parallel()
	m := newMachine(t, Auto, stub)
	service := resolvedtest.Start(t, m.bus)
	if err := m.Set(t.Context(), m.corp()); err != nil {
		t.Fatal(err)
	}
	isSet := func(_ resolvedtest.Link, set bool) bool { return set }
	service.Await(t, link, "resolved is told", isSet)
	if err := m.isStub(); err != nil {
		t.Error(err)
	}
	m.follow()

	service.Restart(t)
	service.Await(t, link, "a new resolved is told", isSet)

	service.Stop()
	m.await("resolv.conf has our server", m.isOurs)

	service.Restart(t)
	service.Await(t, link, "resolved is told when it is back", isSet)
	m.await("resolv.conf is what it was", m.isStub)

	if err := m.Revert(t.Context()); err != nil {
		t.Fatal(err)
	}
	if links := service.Links(); len(links) != 0 {
		t.Errorf("left: %+v", links)
	}
	if left, err := m.Leftover(t.Context()); left || err != nil {
		t.Errorf("left %v, %v", left, err)
	}
}

// TestFixed: a choice of the administrator's is kept, whatever runs.
func TestFixed(t *testing.T) {
	t.Parallel()
	m := newMachine(t, File, stub)
	service := resolvedtest.Start(t, m.bus)
	m.follow()
	if err := m.Set(t.Context(), m.corp()); err != nil {
		t.Fatal(err)
	}
	if err := m.isOurs(); err != nil {
		t.Error(err)
	}
	service.Restart(t)
	if calls := service.Calls(); len(calls) > 0 {
		t.Errorf("resolved was called: %v", calls)
	}
	if err := m.Revert(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.isStub(); err != nil {
		t.Error(err)
	}
}

// TestNoBus: the choice does not need one.
func TestNoBus(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r, err := newResolver(t.Context(), Options{
		Backend: Auto, Bus: "unix:path=" + dir + "/none", ResolvConf: filepath.Join(dir, "resolv.conf"), StateDir: dir, Log: slog.New(slog.DiscardHandler),
	}, "/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.PerLink() {
		t.Error("resolved is chosen")
	}
	if err := r.Revert(t.Context()); err != nil {
		t.Error(err)
	}
}
