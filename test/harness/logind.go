package harness

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	login1     = "org.freedesktop.login1"
	login1Path = "/org/freedesktop/login1"
)

// LogindPolicy is the path of a policy file that lets root be logind on a bus
// with the shipped policy, for BusOptions.
func LogindPolicy(t testing.TB) string {
	t.Helper()
	path := filepath.Join(TempDir(t), "login1.conf")
	text := `<busconfig>
  <policy user="root"><allow own="` + login1 + `"/></policy>
  <policy context="default"><allow send_destination="` + login1 + `"/></policy>
</busconfig>
`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Logind stands in for systemd-logind: it hands out locks that hold up sleep,
// and goes to sleep when the test says so. It is used by one goroutine.
type Logind struct {
	conn *godbus.Conn

	mu    sync.Mutex
	locks []*lock
}

// lock is our end of one that was handed out.
type lock struct {
	file *os.File
	sent chan struct{} // closed when the other end is the client's alone
}

// StartLogind takes logind's name on the bus, until the test ends.
func StartLogind(t testing.TB, bus *Bus) *Logind {
	t.Helper()
	l := &Logind{conn: bus.Dial(t)}
	if err := l.conn.ExportMethodTable(map[string]any{"Inhibit": l.inhibit}, login1Path, login1+".Manager"); err != nil {
		t.Fatal(err)
	}
	if reply, err := l.conn.RequestName(login1, 0); err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("cannot be logind: %v %v", reply, err)
	}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, held := range l.locks {
			_ = held.file.Close()
		}
	})
	return l
}

// inhibit is logind's Inhibit. godbus keeps the descriptor open until it has
// sent the answer, and does not say when that is.
func (l *Logind) inhibit(what, _, _, mode string) (godbus.UnixFD, *godbus.Error) {
	if what != "sleep" || mode != "delay" {
		return -1, godbus.MakeFailedError(errors.New(what + " " + mode))
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return -1, godbus.MakeFailedError(err)
	}
	held := &lock{file: os.NewFile(uintptr(pipe[0]), "sleep lock"), sent: make(chan struct{})}
	time.AfterFunc(time.Second, func() {
		_ = unix.Close(pipe[1])
		close(held.sent)
	})
	l.mu.Lock()
	l.locks = append(l.locks, held)
	l.mu.Unlock()
	return godbus.UnixFD(pipe[1]), nil
}

// Sleep says that the machine is about to sleep. The channel that it returns
// gives how long that was held up, once all locks are let go. It waits for
// somebody to have a lock.
func (l *Logind) Sleep(t testing.TB) <-chan time.Duration {
	t.Helper()
	var held []*lock
	Eventually(t, Timeout, "somebody holds up the sleep", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		held, l.locks = l.locks, nil
		if len(held) == 0 {
			return errors.New("nobody does")
		}
		return nil
	})
	for _, h := range held {
		<-h.sent
	}
	begun, took := time.Now(), make(chan time.Duration, 1)
	l.emit(t, true)
	go func() {
		for _, h := range held {
			_, _ = h.file.Read(make([]byte, 1)) // its end
			_ = h.file.Close()
		}
		took <- time.Since(begun)
	}()
	return took
}

// Wake says that the machine has slept, and waits until somebody holds up the
// next sleep: until the daemon has done all else.
func (l *Logind) Wake(t testing.TB) {
	t.Helper()
	l.emit(t, false)
	Eventually(t, Timeout, "somebody holds up the next sleep", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.locks) == 0 {
			return errors.New("nobody does")
		}
		return nil
	})
}

func (l *Logind) emit(t testing.TB, before bool) {
	t.Helper()
	if err := l.conn.Emit(login1Path, login1+".Manager.PrepareForSleep", before); err != nil {
		t.Fatal(err)
	}
}
