package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// terminal is the program on a terminal of its own, as its foreground.
type terminal struct {
	cmd     *exec.Cmd
	control *os.File
	shown   text
}

func (l *lab) onTerminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	// Where the tests run under nohup, a program of theirs would ignore hangups too.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	control, tty := pty(t)
	defer tty.Close()
	term := &terminal{control: control, cmd: exec.Command(harness.Binary(t, "vpn-openconnect"), args...)}
	term.cmd.Env = append(os.Environ(), mark())
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = tty, tty, tty
	term.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Setctty: true, Pdeathsig: unix.SIGKILL,
		Credential: &syscall.Credential{Uid: user, Gid: user},
	}
	if err := l.Host.Do(term.cmd.Start); err != nil {
		t.Fatal(err)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		buf := make([]byte, 4096)
		for {
			n, err := control.Read(buf)
			if err != nil {
				return // EIO once nobody has the terminal open
			}
			_, _ = term.shown.Write(buf[:n])
		}
	}()
	t.Cleanup(func() {
		_ = term.cmd.Process.Kill()
		_ = term.cmd.Wait()
		_ = control.Close()
		if t.Failed() {
			t.Logf("on the terminal:\n%s", &term.shown)
		}
	})
	return term
}

// pty does without File.Fd, after which a read could not be interrupted by
// Close.
func pty(t *testing.T) (control, tty *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "ptmx"), tty
}

func (term *terminal) await(t *testing.T, what string) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, what, func() error {
		if shown := term.shown.String(); !strings.Contains(shown, what) {
			return errors.New(shown)
		}
		return nil
	})
}

// awaitNoEcho waits for what openconnect does after it has asked.
func (term *terminal) awaitNoEcho(t *testing.T) {
	t.Helper()
	raw, err := term.control.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Timeout, "nothing typed is echoed", func() error {
		var state *unix.Termios
		var ioctlErr error
		err := raw.Control(func(fd uintptr) { state, ioctlErr = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
		switch {
		case err != nil || ioctlErr != nil:
			return errors.Join(err, ioctlErr)
		case state.Lflag&unix.ECHO != 0:
			return errors.New("it is")
		}
		return nil
	})
}

func (term *terminal) typed(t *testing.T, keys string) {
	t.Helper()
	if _, err := term.control.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// TestTerminal: openconnect asks on the terminal and reads from it, the
// password is not echoed, and Ctrl-C logs out.
func TestTerminal(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	term := l.onTerminal(t, "--bus", l.bus.Address, "--servercert", l.server.Pin, l.server.URL)
	term.await(t, "Username:")
	term.typed(t, l.server.User+"\n")
	term.await(t, "Password:")
	term.awaitNoEcho(t)
	term.typed(t, l.server.Password+"\n")
	term.await(t, "vpn-openconnect: connected:")
	l.awaitState(t, l.server.URL, client.StateConnected)
	l.fetchFrom(t, "http://10.98.0.80/", "10.99.0.0/24")

	term.typed(t, "\x03")
	if err := term.cmd.Wait(); err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
	term.await(t, "Send BYE packet: Aborted by caller")
	shown := term.shown.String()
	if strings.Contains(shown, l.server.Password) {
		t.Error("the password was echoed")
	}
	l.nothingLeft(t)
}

// TestInterruptedPrompt: Ctrl-C instead of a password.
func TestInterruptedPrompt(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	term := l.onTerminal(t, "--bus", l.bus.Address, "--servercert", l.server.Pin, "--user", l.server.User, l.server.URL)
	term.await(t, "Password:")
	term.typed(t, "\x03")
	var exit *exec.ExitError
	if err := term.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("got %v, want openconnect's exit code 1", err)
	}
	l.nothingLeft(t)
}

// TestInterruptSentToUsAlone: kill -INT from another terminal reaches
// openconnect too, and the session ends with logout.
func TestInterruptSentToUsAlone(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	term := l.onTerminal(t, "--bus", l.bus.Address, "--servercert", l.server.Pin, "--user", l.server.User, l.server.URL)
	term.await(t, "Password:")
	term.typed(t, l.server.Password+"\n")
	l.awaitState(t, l.server.URL, client.StateConnected)
	if err := term.cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := term.cmd.Wait(); err != nil {
		t.Errorf("got %v", err)
	}
	term.await(t, "Send BYE packet: Aborted by caller")
	l.nothingLeft(t)
}

// TestHangup: the terminal is closed. openconnect leaves the server's session
// alone, and nothing of ours stays.
func TestHangup(t *testing.T) {
	l := newLab(t, harness.OCServOptions{})
	term := l.onTerminal(t, "--bus", l.bus.Address, "--servercert", l.server.Pin, "--user", l.server.User, l.server.URL)
	term.await(t, "Password:")
	term.typed(t, l.server.Password+"\n")
	l.awaitState(t, l.server.URL, client.StateConnected)
	if err := term.control.Close(); err != nil {
		t.Fatal(err)
	}
	if err := term.cmd.Wait(); err != nil {
		t.Errorf("got %v", err)
	}
	l.nothingLeft(t)
}
