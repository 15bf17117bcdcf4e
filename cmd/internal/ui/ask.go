package ui

import (
	"context"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// polkitAgent asks for passwords on a terminal. It comes with polkit.
const polkitAgent = "pkttyagent"

const (
	// agentTime bounds its start: without it polkit says no, which is told.
	agentTime = 5 * time.Second

	// agentEnd is how long it has to put the terminal back.
	agentEnd = 3 * time.Second
)

// Ask has polkit ask for passwords on this program's terminal until end is
// called, which may be done again. A desktop that asks by itself goes first;
// without one, and without this, nobody would be asked.
//
// It does nothing for root, whom polkit asks nothing; for a bus at an address,
// where there is no polkit; and without a terminal, or in the background of
// one, where nobody could answer.
func Ask(ctx context.Context, bus string) (end func()) {
	nothing := func() {}
	if bus != "" || os.Getuid() == 0 || !IsTerminal(os.Stdin) || !IsTerminal(os.Stderr) || !InForeground() {
		return nothing
	}
	ready, told, err := os.Pipe()
	if err != nil {
		return nothing
	}
	defer ready.Close()
	ctx, cancel := context.WithCancel(ctx)
	// It is the agent of its parent, and closes the descriptor when it is ready.
	agent := exec.CommandContext(ctx, polkitAgent, "--fallback", "--notify-fd", "3")
	agent.Stdin, agent.Stdout, agent.Stderr = os.Stdin, os.Stdout, os.Stderr
	agent.ExtraFiles = []*os.File{told}
	agent.Cancel = func() error { return agent.Process.Signal(unix.SIGTERM) }
	agent.WaitDelay = agentEnd
	err = agent.Start()
	told.Close()
	if err != nil {
		cancel()
		return nothing
	}
	_ = ready.SetReadDeadline(time.Now().Add(agentTime))
	_, _ = io.Copy(io.Discard, ready)
	return sync.OnceFunc(func() {
		cancel()
		_ = agent.Wait()
	})
}

// IsTerminal reports whether a file is one.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// InForeground reports whether this program's process group is the one that
// may read from its terminal, and gets the signals of its keys.
func InForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
