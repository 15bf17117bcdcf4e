package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Command is a program to be run.
type Command struct {
	Argv []string

	// UID is the user, and the group of the same number; 0 is root. A user has
	// no capabilities and no further groups.
	UID uint32

	Env   []string // added to the test's own
	Stdin string   // all that the program can read; empty is end of file

	// Files are passed as descriptors 3 and up. The caller keeps its own.
	Files []*os.File

	// Contained puts the program, which must be able to be process 1, in a
	// process namespace: killing it kills its children too.
	Contained bool
}

// Process is a program that was started. Its methods may be called from
// several goroutines.
type Process struct {
	name   string
	cmd    *exec.Cmd
	out    output
	exited chan struct{}
	err    error // how it ended; read after exited is closed
}

// output collects what a process prints while others read it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Start starts a program in the namespace. It is killed when the test ends, and
// its output is shown if the test failed. A data race that a program built with
// the race detector reports fails the test.
func (n *Namespace) Start(t testing.TB, c Command) *Process {
	t.Helper()
	p, err := n.start(c)
	if err != nil {
		t.Fatalf("%s: cannot start %s: %v", n.name, c.Argv[0], err)
	}
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

func (n *Namespace) start(c Command) (*Process, error) {
	p := &Process{name: filepath.Base(c.Argv[0]), cmd: exec.Command(c.Argv[0], c.Argv[1:]...), exited: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), ownerVariable+strconv.Itoa(os.Getpid()), "GORACE=atexit_sleep_ms=0")
	p.cmd.Env = append(p.cmd.Env, c.Env...)
	p.cmd.Stdin = strings.NewReader(c.Stdin)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.ExtraFiles = c.Files
	p.cmd.WaitDelay = time.Second // a child that inherited the output may outlive it
	// The parent, for the signal, is the namespace's thread.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.UID != 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.UID}
	}
	if c.Contained {
		p.cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	if err := n.Do(p.cmd.Start); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output is what it has printed so far, on both outputs.
func (p *Process) Output() string { return p.out.String() }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Signal sends a signal. That the process has ended already is no error.
func (p *Process) Signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// Kill kills the process and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// Wait waits for the process to end by itself, and returns how it did.
func (p *Process) Wait(t testing.TB) error {
	t.Helper()
	select {
	case <-p.exited:
		return p.err
	case <-time.After(Timeout):
		t.Fatalf("%s has not ended within %v:\n%s", p.name, Timeout, p.Output())
		return nil
	}
}

// Await waits until the output matches the regular expression, and returns the
// match and its groups.
func (p *Process) Await(t testing.TB, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	Eventually(t, Timeout, p.name+" prints "+pattern, func() error {
		ended := false
		select {
		case <-p.exited:
			ended = true
		default:
		}
		found = re.FindStringSubmatch(p.Output())
		if found == nil && ended {
			t.Fatalf("%s ended (%v) without printing %s:\n%s", p.name, p.err, pattern, p.Output())
		}
		if found == nil {
			return fmt.Errorf("it printed:\n%s", p.Output())
		}
		return nil
	})
	return found
}
