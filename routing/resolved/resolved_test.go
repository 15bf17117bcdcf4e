package resolved_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
	"github.com/vpnprovider/vpnproviderd/dbus/stream/streamtest"
	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/resolved"
	"github.com/vpnprovider/vpnproviderd/routing/resolved/resolvedtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const link = 7

// corp is a full tunnel's DNS.
func corp() routing.Resolution {
	return routing.Resolution{
		Link: routing.Link{Name: "vpn0", Index: link},
		DNS:  routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.1.2.3")}, Search: []string{"corp.example"}},
		Full: true,
	}
}

func newResolver(t testing.TB, address string, links ...int) *resolved.Resolver {
	t.Helper()
	r := resolved.New(resolved.Options{
		Address: address, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Links: func(context.Context) ([]int, error) { return links, nil },
	})
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func start(t testing.TB) (*resolvedtest.Service, *resolved.Resolver, string) {
	t.Helper()
	address := clienttest.Bus(t)
	return resolvedtest.Start(t, address), newResolver(t, address), address
}

func set(t testing.TB, r *resolved.Resolver, want routing.Resolution) {
	t.Helper()
	if err := r.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
}

func leftover(t testing.TB, r *resolved.Resolver) bool {
	t.Helper()
	left, err := r.Leftover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func requireLinks(t testing.TB, s *resolvedtest.Service, want map[int]resolvedtest.Link) {
	t.Helper()
	opts := cmp.Options{cmpopts.IgnoreUnexported(resolvedtest.Link{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}
	if diff := cmp.Diff(want, s.Links(), opts); diff != "" {
		t.Errorf("- wanted + found\n%s", diff)
	}
}

func corpLink() resolvedtest.Link {
	return resolvedtest.Link{
		Servers: corp().DNS.Servers, Domains: []string{"corp.example", "~."}, DefaultRoute: true, LLMNR: "no", Mdns: "no",
	}
}

func TestSetAndRevert(t *testing.T) {
	t.Parallel()
	s, r, _ := start(t)
	if leftover(t, r) {
		t.Error("there is something before anything was set")
	}
	for range 2 { // again is the same
		set(t, r, corp())
		requireLinks(t, s, map[int]resolvedtest.Link{link: corpLink()})
	}
	if !leftover(t, r) {
		t.Error("nothing is known of what was set")
	}
	split := corp()
	split.DNS.Search, split.DNS.Match = nil, []string{"lab.example"}
	set(t, r, split)
	want := corpLink()
	want.Domains, want.DefaultRoute = []string{"~lab.example"}, false
	requireLinks(t, s, map[int]resolvedtest.Link{link: want})
	for range 2 {
		if err := r.Revert(t.Context()); err != nil {
			t.Fatal(err)
		}
		requireLinks(t, s, map[int]resolvedtest.Link{})
	}
	if leftover(t, r) {
		t.Error("something is left after the end")
	}
}

// TestNothingToRevert: who has set nothing does not even look for resolved.
func TestNothingToRevert(t *testing.T) {
	t.Parallel()
	r := newResolver(t, "unix:path=/nonexistent")
	if err := r.Revert(t.Context()); err != nil {
		t.Error(err)
	}
	if leftover(t, r) {
		t.Error("left")
	}
}

// TestEarlierRun: what an earlier process left on links with our mark is ours.
func TestEarlierRun(t *testing.T) {
	t.Parallel()
	s, earlier, address := start(t)
	set(t, earlier, corp())
	r := newResolver(t, address, link)
	if !leftover(t, r) {
		t.Error("it is not found")
	}
	if err := r.Revert(t.Context()); err != nil {
		t.Fatal(err)
	}
	requireLinks(t, s, map[int]resolvedtest.Link{})
	if leftover(t, r) {
		t.Error("it is still found")
	}
}

func TestOldVersion(t *testing.T) {
	t.Parallel()
	s, r, _ := start(t)
	s.Lose(t, "SetLinkDNSEx", "SetLinkDefaultRoute")
	set(t, r, corp())
	want := corpLink()
	want.UsedOldSetDNS, want.DefaultRoute = true, false
	requireLinks(t, s, map[int]resolvedtest.Link{link: want})
}

// TestNewLink: resolved learns of a link from the kernel, maybe after us.
func TestNewLink(t *testing.T) {
	t.Parallel()
	s, r, _ := start(t)
	s.Miss(link, true)
	go func() {
		for len(s.Calls()) < 3 {
			time.Sleep(time.Millisecond)
		}
		s.Miss(link, false)
	}()
	set(t, r, corp())
	requireLinks(t, s, map[int]resolvedtest.Link{link: corpLink()})
}

func TestLinkGone(t *testing.T) {
	t.Parallel()
	s, r, _ := start(t)
	set(t, r, corp())
	s.Miss(link, true)
	if err := r.Set(t.Context(), corp()); err == nil || !strings.Contains(err.Error(), "vpn0") {
		t.Errorf("a link that is not there: %v", err)
	}
	if err := r.Revert(t.Context()); err != nil {
		t.Error(err)
	}
	if leftover(t, r) {
		t.Error("a link that is gone is still to be reverted")
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	s, r, _ := start(t)
	s.Fail("SetLinkLLMNR", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired")
	s.Fail("RevertLink", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired")
	err := r.Set(t.Context(), corp())
	if err == nil || !strings.Contains(err.Error(), "49-vpnproviderd.rules") || !strings.Contains(err.Error(), "polkit") {
		t.Errorf("the error does not help: %v", err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it counts as a timeout: %v", err)
	}
	if err := r.Revert(t.Context()); err != nil || slices.Contains(s.Calls(), "RevertLink") {
		t.Errorf("where nothing was set, something was reverted: %v, %v", err, s.Calls())
	}
}

// TestEveryFailure: whichever setting fails, Set says so and Revert has
// nothing left.
func TestEveryFailure(t *testing.T) {
	t.Parallel()
	s, r, _ := start(t)
	for _, method := range []string{"SetLinkLLMNR", "SetLinkMulticastDNS", "SetLinkDNSEx", "SetLinkDomains", "SetLinkDefaultRoute"} {
		s.Fail(method, "org.example.Broken")
		if err := r.Set(t.Context(), corp()); err == nil || !strings.Contains(err.Error(), method) {
			t.Errorf("%s: %v", method, err)
		}
		s.Fail(method, "")
		if err := r.Revert(t.Context()); err != nil {
			t.Errorf("%s: %v", method, err)
		}
		requireLinks(t, s, map[int]resolvedtest.Link{})
	}
}

// TestRevertFails: the end of a tunnel does not wait for resolved, and what it
// did not do is tried again.
func TestRevertFails(t *testing.T) {
	t.Parallel()
	s, r, _ := start(t)
	set(t, r, corp())
	s.Fail("RevertLink", "org.example.Broken")
	if err := r.Revert(t.Context()); err != nil {
		t.Error(err)
	}
	if !leftover(t, r) {
		t.Error("it counts as done")
	}
	s.Fail("RevertLink", "")
	if err := r.Revert(t.Context()); err != nil {
		t.Error(err)
	}
	requireLinks(t, s, map[int]resolvedtest.Link{})
}

// TestHang: each call ends in time, and what was asked for last holds when
// resolved goes on.
func TestHang(t *testing.T) {
	t.Parallel()
	s, r, _ := start(t)
	set(t, r, corp())
	s.Hang()
	begin := time.Now()
	err := r.Set(t.Context(), corp())
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Set: %v", err)
	}
	if err := r.Revert(t.Context()); err != nil {
		t.Errorf("Revert: %v", err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("it took %v", took)
	}
	if !leftover(t, r) {
		t.Error("it counts as done")
	}
	s.GoOn()
	s.Await(t, link, "the link is reverted", func(_ resolvedtest.Link, set bool) bool { return !set })
	set(t, r, corp())
	requireLinks(t, s, map[int]resolvedtest.Link{link: corpLink()})
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	s, r, _ := start(t)
	s.Hang()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for len(s.Calls()) == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if err := r.Set(ctx, corp()); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestBusHangs: a bus that takes the connection and says nothing.
func TestBusHangs(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	r := newResolver(t, "unix:path="+socket)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if err := r.Set(ctx, corp()); !errors.Is(err, context.Canceled) { // not its own deadline
		t.Errorf("%v", err)
	}
	<-done // the connection was given up
}

func TestAbsent(t *testing.T) {
	t.Parallel()
	s, r, _ := start(t)
	set(t, r, corp())
	s.Stop()
	if err := r.Set(t.Context(), corp()); err == nil || !strings.Contains(err.Error(), "is not running") {
		t.Errorf("Set: %v", err)
	}
	if err := r.Revert(t.Context()); err != nil {
		t.Errorf("Revert: %v", err)
	}
	if running, startable, err := r.State(t.Context()); running || startable || err != nil {
		t.Errorf("%v, %v, %v", running, startable, err)
	}
	s.Restart(t)
	if running, startable, err := r.State(t.Context()); !running || startable || err != nil {
		t.Errorf("%v, %v, %v", running, startable, err)
	}
	// The real one remembers settings over a restart.
	if !leftover(t, r) {
		t.Error("what comes back with it is not taken back")
	}
	if err := r.Revert(t.Context()); err != nil || leftover(t, r) {
		t.Errorf("Revert: %v", err)
	}
}

// TestBusLost: the end of a tunnel does not need a bus.
func TestBusLost(t *testing.T) {
	t.Parallel()
	address, kill := clienttest.BusToKill(t)
	resolvedtest.Start(t, address)
	r := newResolver(t, address)
	set(t, r, corp())
	kill()
	if err := r.Revert(t.Context()); err != nil {
		t.Errorf("Revert without a bus: %v", err)
	}
	if err := r.Set(t.Context(), corp()); err == nil {
		t.Error("Set without a bus")
	}
}

// TestAsker: a bus that does not tell in time, or is gone, does not make the user
// of systemd-resolved nobody.
func TestAsker(t *testing.T) {
	t.Parallel()
	const user = 65534
	address, kill := clienttest.BusToKill(t)
	r := newResolver(t, address)
	late, cancel := context.WithCancel(t.Context())
	cancel()
	ask := func(ctx context.Context, want uint32, known bool) {
		t.Helper()
		if got, err := r.Asker(ctx); got != want || (err == nil) != known {
			t.Errorf("user %d, error %v; want %d", got, err, want)
		}
	}
	ask(t.Context(), 0, true) // nobody has the name
	ask(late, 0, false)
	service := connectAs(t, address, user)
	requestName(t, service)
	ask(late, 0, false)
	ask(t.Context(), user, true)
	ask(late, user, true)
	if err := service.Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) { // until the bus has noticed
		if got, err := r.Asker(t.Context()); got == 0 && err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("user %d, error %v, and nobody has the name", got, err)
		}
	}
	ask(late, user, true)
	kill()
	ask(t.Context(), user, true)
}

func requestName(t testing.TB, conn *godbus.Conn) {
	t.Helper()
	reply, err := conn.RequestName(resolvedtest.Name, godbus.NameFlagDoNotQueue)
	if err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("cannot be %s: %v, %v", resolvedtest.Name, reply, err)
	}
}

// connectAs connects to the bus as another user: that of the thread counts.
func connectAs(t testing.TB, address string, user int) *godbus.Conn {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs the right to be another user")
	}
	path, _ := strings.CutPrefix(address, "unix:path=")
	if err := os.Chmod(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // a socket for that user
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	become := func(user int) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(user), ^uintptr(0)); errno != 0 {
			t.Fatal(errno)
		}
	}
	become(user)
	conn, err := godbus.Dial(address)
	become(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := errors.Join(conn.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(user))}), conn.Hello()); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestHostileSignals: any user can send us signals that godbus does not stand.
func TestHostileSignals(t *testing.T) {
	t.Parallel()
	address := clienttest.Bus(t)
	s := resolvedtest.Start(t, address)
	attacker := streamtest.Dial(t, address)
	others := uniqueNames(t, address)
	r := newResolver(t, address)
	told := watch(t, r)
	next(t, told, true)
	for _, name := range uniqueNames(t, address) {
		if !slices.Contains(others, name) {
			streamtest.Signals(t, attacker, name)
		}
	}
	s.Restart(t)
	next(t, told, true)
	set(t, r, corp())
}

func TestClosed(t *testing.T) {
	t.Parallel()
	_, r, _ := start(t)
	set(t, r, corp())
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Set(t.Context(), corp()); err == nil {
		t.Error("it can still be used")
	}
}

// watch collects what Watch tells until the test ends.
func watch(t testing.TB, r *resolved.Resolver) <-chan bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	told, done := make(chan bool, 100), make(chan error, 1)
	go func() { done <- r.Watch(ctx, func(running bool) { told <- running }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	return told
}

func next(t testing.TB, told <-chan bool, want bool) {
	t.Helper()
	select {
	case got := <-told:
		if got != want {
			t.Fatalf("told %v, want %v", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was told")
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	s, r, address := start(t)
	told := watch(t, r)
	next(t, told, true)

	s.Restart(t)
	next(t, told, true)

	s.Stop()
	next(t, told, false)

	s.Restart(t)
	next(t, told, true)

	// Any user can send these.
	resolvedtest.Forge(t, address, uniqueNames(t, address))
	s.Restart(t)
	next(t, told, true)
	select {
	case <-told:
		t.Error("a forged signal was believed")
	case <-time.After(50 * time.Millisecond):
	}
}

func uniqueNames(t testing.TB, address string) []string {
	t.Helper()
	conn, err := godbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var names []string
	if err := conn.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, ":") })
}

func TestWatchLosesBus(t *testing.T) {
	t.Parallel()
	address, kill := clienttest.BusToKill(t)
	r := newResolver(t, address)
	told, done := make(chan bool, 1), make(chan error, 1)
	go func() { done <- r.Watch(t.Context(), func(running bool) { told <- running }) }()
	next(t, told, false)
	kill()
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(20 * time.Second):
		t.Error("it goes on")
	}
}
