package sleep_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/sleep"
	"github.com/vpnprovider/vpnproviderd/dbus/stream/streamtest"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// logind is a stand-in that hands out locks.
type logind struct {
	*godbus.Conn
	t     testing.TB
	locks chan *os.File // our ends: closed by the other side when it lets go
	asked chan string   // who asked for each
}

func startLogind(t testing.TB, bus *harness.Bus) *logind {
	t.Helper()
	l := &logind{Conn: bus.Dial(t), t: t, locks: make(chan *os.File, 10), asked: make(chan string, 10)}
	if err := l.Export(l, "/org/freedesktop/login1", "org.freedesktop.login1.Manager"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.RequestName("org.freedesktop.login1", 0); err != nil {
		t.Fatal(err)
	}
	return l
}

// Inhibit is logind's method.
func (l *logind) Inhibit(sender godbus.Sender, what, _, _, mode string) (godbus.UnixFD, *godbus.Error) {
	if what != "sleep" || mode != "delay" {
		return -1, godbus.MakeFailedError(errors.New(what + " " + mode))
	}
	r, w, err := os.Pipe()
	if err != nil {
		return -1, godbus.MakeFailedError(err)
	}
	l.locks <- r
	l.asked <- string(sender)
	fd := godbus.UnixFD(w.Fd())
	time.AfterFunc(time.Second, func() { w.Close() }) // godbus has sent its copy by then
	return fd, nil
}

func prepare(t testing.TB, conn *godbus.Conn, before bool) {
	t.Helper()
	if err := conn.Emit("/org/freedesktop/login1", "org.freedesktop.login1.Manager.PrepareForSleep", before); err != nil {
		t.Fatal(err)
	}
}

// released waits until the lock is let go.
func released(t testing.TB, lock *os.File) {
	t.Helper()
	lock.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := lock.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the lock is held")
	}
	lock.Close()
}

func held(t testing.TB, lock *os.File) {
	t.Helper()
	lock.SetReadDeadline(time.Now().Add(1500 * time.Millisecond))
	if _, err := lock.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the lock is not held: %v", err)
	}
}

// The lock is taken, held until the app is ready, and taken again after the
// sleep; another than logind cannot put the machine to sleep.
func TestSleepAndWake(t *testing.T) {
	bus := harness.StartBus(t, harness.NewHost(t, "sleep"), harness.BusOptions{})
	l := startLogind(t, bus)
	ready, events := make(chan struct{}), make(chan string, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- sleep.Watch(ctx, bus.Address, sleep.Events{
			Before: func() <-chan struct{} { events <- "before"; return ready },
			After:  func() { events <- "after" },
		}, slog.New(slog.DiscardHandler))
	}()
	lock := <-l.locks
	forger := bus.DialAs(t, harness.Bob)
	prepare(t, forger, true)
	held(t, lock)
	prepare(t, l.Conn, true)
	if e := <-events; e != "before" {
		t.Error(e)
	}
	if len(events) != 0 {
		t.Error("a forged signal was believed")
	}
	close(ready)
	released(t, lock)
	prepare(t, l.Conn, false)
	if e := <-events; e != "after" {
		t.Error(e)
	}
	lock = <-l.locks

	// logind is replaced: the new one gives a lock, the old one is forgotten.
	if _, err := l.ReleaseName("org.freedesktop.login1"); err != nil {
		t.Fatal(err)
	}
	released(t, lock)
	second := startLogind(t, bus)
	lock = <-second.locks
	prepare(t, l.Conn, true)
	held(t, lock)
	if len(events) != 0 {
		t.Error("the logind that is gone was believed")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	released(t, lock)
}

// Anybody can send us a signal. None ends the watching, whatever godbus thinks
// of it.
func TestHostileSignals(t *testing.T) {
	bus := harness.StartBus(t, harness.NewHost(t, "sleep"), harness.BusOptions{})
	l := startLogind(t, bus)
	ctx, cancel := context.WithCancel(t.Context())
	done, told := make(chan error), make(chan struct{}, 1)
	go func() {
		done <- sleep.Watch(ctx, bus.Address, sleep.Events{
			Before: func() <-chan struct{} {
				told <- struct{}{}
				return ctx.Done()
			},
			After: func() {},
		}, slog.New(slog.DiscardHandler))
	}()
	streamtest.Signals(t, bus.DialRaw(t, harness.Bob), <-l.asked)
	prepare(t, l.Conn, true)
	select {
	case <-told:
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	case err := <-done:
		cancel()
		t.Error("the watching has ended:", err)
	}
	released(t, <-l.locks)
}

// Without a logind there is nothing to tell, and it may come later.
func TestLogindComesLater(t *testing.T) {
	bus := harness.StartBus(t, harness.NewHost(t, "sleep"), harness.BusOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- sleep.Watch(ctx, bus.Address, sleep.Events{}, slog.New(slog.DiscardHandler)) }()
	l := startLogind(t, bus)
	lock := <-l.locks
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	released(t, lock)
}

func TestNoBus(t *testing.T) {
	if err := sleep.Watch(t.Context(), "unix:path=/nowhere", sleep.Events{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no error")
	}
}
