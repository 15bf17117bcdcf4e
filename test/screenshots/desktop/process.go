package desktop

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Process is a program of the desktop. Its methods may be called from any
// goroutine.
type Process struct {
	name   string
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // how it ended; read after exited is closed

	mu  sync.Mutex
	out bytes.Buffer
}

// Start starts a program, with env in place of the buses, the screen and the
// folders of who runs the test. It is killed when the test ends; what it said
// is shown if the test failed.
func Start(t testing.TB, env []string, argv ...string) *Process {
	t.Helper()
	p := &Process{name: filepath.Base(argv[0]), cmd: exec.Command(argv[0], argv[1:]...), exited: make(chan struct{})}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !strings.HasPrefix(name, "DBUS_") && !strings.HasPrefix(name, "XDG_") && name != "DISPLAY" && name != "HOME" {
			p.cmd.Env = append(p.cmd.Env, v)
		}
	}
	p.cmd.Env = append(append(p.cmd.Env, "GORACE=atexit_sleep_ms=0"), env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what it starts ends with it
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("cannot start %s: %v", argv[0], err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.Kill()
		if strings.Contains(p.Output(), "WARNING: DATA RACE") {
			t.Errorf("%s has a data race", p.name)
		}
		if t.Failed() {
			t.Logf("output of %s (%v):\n%s", p.name, p.err, p.Output())
		}
	})
	return p
}

// Write takes what the program prints.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

// Output is what it has printed so far, on both outputs.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// Kill kills the process and those that it started, and waits for its end.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.exited
}

// Wait waits for the process to end by itself, and returns its exit code.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(harness.Timeout):
		t.Fatalf("%s has not ended within %v:\n%s", p.name, harness.Timeout, p.Output())
		return 0
	}
}

// Await waits until the program has printed something.
func (p *Process) Await(t testing.TB, text string) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, p.name+" prints "+text, func() error {
		if out := p.Output(); !strings.Contains(out, text) {
			return fmt.Errorf("it printed %q", out)
		}
		return nil
	})
}

// Running is an error where the process has ended.
func (p *Process) Running() error {
	select {
	case <-p.exited:
		return errors.New(p.name + " has ended: " + p.Output())
	default:
		return nil
	}
}
