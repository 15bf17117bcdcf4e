package container

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Command is a program to be run in the container.
type Command struct {
	Argv []string

	// Unit runs it as a unit of systemd's, in a cgroup of its own.
	Unit bool

	// User logs this one in and runs it in the session; that is a unit too.
	// Empty is root.
	User string

	// Seat makes the session that of somebody at the machine's own screen,
	// whom polkit calls active. Otherwise it is as one by ssh.
	Seat bool

	Stdin string // all that the program can read; empty is end of file
}

func (c *Container) command(cmd Command) *exec.Cmd {
	argv := []string{"nsenter", "--target", strconv.Itoa(c.Leader), "--all", "--wdns=/", "--", "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	if cmd.Unit || cmd.User != "" {
		argv = append(argv, "systemd-run", "--quiet", "--pipe", "--wait", "--collect")
	}
	if cmd.User != "" {
		session := "XDG_SESSION_CLASS=user"
		if cmd.Seat {
			session += " XDG_SEAT=seat0 XDG_SESSION_TYPE=x11"
		}
		argv = append(argv, "--property=User="+cmd.User, "--property=PAMName=login", "--property=Environment="+session)
	}
	argv = append(argv, cmd.Argv...)
	p := exec.Command(argv[0], argv[1:]...)
	p.Stdin = strings.NewReader(cmd.Stdin)
	p.WaitDelay = time.Second // a child that inherited the output may outlive it
	return p
}

// Output runs a command to its end, and returns what it printed on both
// outputs and how it ended: the error is an *exec.ExitError with its code.
func (c *Container) Output(cmd Command) (string, error) {
	p := c.command(cmd)
	var out output
	p.Stdout, p.Stderr = &out, &out
	if err := p.Start(); err != nil {
		return "", err
	}
	timer := time.AfterFunc(3*harness.Timeout, func() { _ = p.Process.Kill() })
	defer timer.Stop()
	err := p.Wait()
	return out.String(), err
}

// Run runs a program as root, in all the container's namespaces, and returns
// what it printed. It ends the test when the program fails.
func (c *Container) Run(t testing.TB, argv ...string) string {
	t.Helper()
	return c.must(t, Command{Argv: argv})
}

// RunAs is Run in a login session of the user's, as by ssh.
func (c *Container) RunAs(t testing.TB, user string, argv ...string) string {
	t.Helper()
	return c.must(t, Command{Argv: argv, User: user})
}

func (c *Container) must(t testing.TB, cmd Command) string {
	t.Helper()
	out, err := c.Output(cmd)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Argv, " "), err, out)
	}
	return out
}

// Process is a program that was started in the container.
type Process struct {
	cmd    *exec.Cmd
	out    output
	stdin  io.WriteCloser
	exited chan struct{}
	err    error
}

// Start starts a program and returns at once. It ends with the container, or
// when its input does and it heeds that. Command.Stdin must be empty: the
// program reads what is written to the Process.
func (c *Container) Start(t testing.TB, cmd Command) *Process {
	t.Helper()
	p := &Process{cmd: c.command(cmd), exited: make(chan struct{})}
	p.cmd.Stdin = nil
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = p.stdin.Close()
		_ = p.cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("output of %s (%v):\n%s", strings.Join(cmd.Argv, " "), p.err, p.out.String())
		}
	})
	return p
}

// Write sends text to the program's input.
func (p *Process) Write(b []byte) (int, error) { return p.stdin.Write(b) }

// Output is what it has printed so far, on both outputs.
func (p *Process) Output() string { return p.out.String() }

// Await waits until the output holds the text.
func (p *Process) Await(t testing.TB, text string) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, fmt.Sprintf("the program prints %q", text), func() error {
		out := p.Output()
		if strings.Contains(out, text) {
			return nil
		}
		select {
		case <-p.exited:
			t.Fatalf("the program ended (%v) without printing %q:\n%s", p.err, text, p.Output())
		default:
		}
		return fmt.Errorf("it printed:\n%s", out)
	})
}

// WriteFile makes a file in the container, with its folders, owned by root.
func (c *Container) WriteFile(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	path = c.Root() + path
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// CopyFile copies a file of this machine's into the container.
func (c *Container) CopyFile(t testing.TB, from, to string, mode os.FileMode) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	c.WriteFile(t, to, string(text), mode)
}

// ReadFile reads a file of the container's. Links are followed inside it.
func (c *Container) ReadFile(t testing.TB, path string) string {
	t.Helper()
	return c.Run(t, "cat", path)
}

// Build builds a program of this module so that it runs in the container,
// whatever C library is there, and returns its path on this machine. pkg is as
// in ./cmd/vpnctl.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	path := filepath.Join(harness.TempDir(t), filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-o", path, pkg)
	cmd.Dir = harness.ModuleRoot(t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build %s: %v\n%s", pkg, err, out)
	}
	return path
}

// BuildTests is Build for the tests of a package. Those that are to be run in
// the container best skip where a variable is not in the environment.
func BuildTests(t testing.TB, pkg string) string {
	t.Helper()
	path := filepath.Join(harness.TempDir(t), filepath.Base(pkg)+".test")
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-o", path, pkg)
	cmd.Dir = harness.ModuleRoot(t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the tests of %s: %v\n%s", pkg, err, out)
	}
	return path
}
