// Package openconnect runs the openconnect program as a child, unmodified and
// as the same user, with the program that embeds this package as its tunnel
// script.
//
// openconnect starts the script once, when it is connected, and gives it one
// end of a datagram socket pair in the place of a TUN device. The script hands
// both, environment and socket, to its grandparent (see Script). Everything
// else stays openconnect's own: prompts, messages, signals, exit codes.
package openconnect

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// LogoutTime is how long openconnect may take to log out at SIGINT, which may need
// an answer of the server's, and termTime how long to give that up at SIGTERM.
const (
	LogoutTime = 10 * time.Second
	termTime   = 3 * time.Second
)

// outputTime is how long the output is copied after openconnect has ended.
// Programs that it started, such as a browser, may hold it open for ever.
const outputTime = 500 * time.Millisecond

// Options of Start.
type Options struct {
	Program string   // openconnect's path
	Args    []string // without those that Start adds
	Env     []string

	// Self is the program to start as the script, and the arguments that make
	// it call Script with the descriptor whose number Start appends.
	Self []string

	// Stdin is openconnect's own, so that prompts work on a terminal. The two
	// others are copied through a pipe, byte for byte and unbuffered. They are
	// used until Done; failing writes are ignored, as a program that has lost
	// its terminal must live on to log out.
	Stdin          *os.File
	Stdout, Stderr io.Writer

	// Wanted picks the variables that are handed over.
	Wanted func(name string) bool
}

// Process is a running openconnect. Its methods may be called from any
// goroutine. It dies with the process that started it.
type Process struct {
	cmd     *exec.Cmd
	tunnel  chan Tunnel
	events  chan Event
	done    chan struct{}
	endOnce sync.Once
}

// Start starts openconnect. The caller must wait for Done.
func Start(o Options) (*Process, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("cannot start openconnect: %w", err)
	}
	defer theirs.Close()

	p := &Process{
		tunnel: make(chan Tunnel, 1),
		events: make(chan Event, 16),
		done:   make(chan struct{}),
	}
	const scriptFD = 3 // the first of ExtraFiles
	p.cmd = exec.Command(o.Program, append([]string{
		"--script-tun", "--script", scriptCommand(o.Self, scriptFD),
	}, o.Args...)...)
	p.cmd.Stdin = o.Stdin
	p.cmd.Stdout = &watcher{out: o.Stdout, report: p.report}
	p.cmd.Stderr = &watcher{out: o.Stderr, report: p.report}
	p.cmd.ExtraFiles = []*os.File{theirs}
	p.cmd.Env = o.Env
	p.cmd.WaitDelay = outputTime
	// The kernel's signal for the case that we are killed: SIGTERM lets
	// openconnect log out.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}

	started := make(chan error)
	go p.run(started, ours)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start openconnect: %w", err)
	}
	go p.receive(ours, o.Wanted)
	return p, nil
}

// run keeps its thread until openconnect has ended: the signal of the parent's
// death is sent when the thread dies that started the child.
func (p *Process) run(started chan<- error, ours io.Closer) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer ours.Close() // the script ends, and so does receive
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	_ = p.cmd.Wait() // ExitCode tells; else only what the output has lost
	close(p.done)
}

func (p *Process) receive(ours *net.UnixConn, wanted func(string) bool) {
	t, err := receive(ours, wanted)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return // openconnect has ended without a tunnel: its exit code says why
	}
	if err != nil {
		t = Tunnel{Err: err}
	}
	p.tunnel <- t
}

// report drops events where nobody takes them: each only says what is so now.
func (p *Process) report(e Event) {
	select {
	case p.events <- e:
	default:
	}
}

// Tunnel gives what the script was given, once, when openconnect is connected.
// Never, if it ends before.
func (p *Process) Tunnel() <-chan Tunnel { return p.tunnel }

// Events of the connection, as far as the output tells of them.
func (p *Process) Events() <-chan Event { return p.events }

// Done is closed when openconnect has ended and its output is copied.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode is openconnect's, or 128 and the signal that killed it, as shells
// have it. Only after Done.
func (p *Process) ExitCode() int {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return p.cmd.ProcessState.ExitCode()
}

// Signal sends openconnect a signal. One that has ended needs none.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("cannot send openconnect %v: %w", sig, err)
	}
	return nil
}

// End has openconnect log out and exit, by ever stronger means. It returns at
// once; Done tells when. More than once is fine.
func (p *Process) End() {
	p.endOnce.Do(func() { go p.end() })
}

func (p *Process) end() {
	for _, step := range [...]struct {
		sig  os.Signal
		wait time.Duration
	}{{unix.SIGINT, LogoutTime}, {unix.SIGTERM, termTime}, {unix.SIGKILL, 0}} {
		_ = p.Signal(step.sig)
		select {
		case <-p.done:
			return
		case <-time.After(step.wait):
		}
	}
}

// scriptCommand is a line for the shell, which openconnect starts the script
// with. exec: or the shell would stay as one process more.
func scriptCommand(self []string, fd int) string {
	words := make([]string, 0, len(self))
	for _, word := range self {
		words = append(words, "'"+strings.ReplaceAll(word, "'", `'\''`)+"'")
	}
	return fmt.Sprintf("exec %s %d", strings.Join(words, " "), fd)
}

func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	file := os.NewFile(uintptr(fds[0]), "handover")
	defer file.Close() // ours is a copy
	theirs = os.NewFile(uintptr(fds[1]), "handover of the script")
	if ours, err = fileConn(file); err != nil {
		_ = theirs.Close()
	}
	return ours, theirs, err
}
