package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// polkitAgent asks for passwords on a terminal. It comes with polkit.
const polkitAgent = "pkttyagent"

// agentTimeout bounds its start: without it polkit says no, which is told.
const agentTimeout = 5 * time.Second

// askHere has polkit ask for passwords on this program's terminal, until end is
// called. A desktop that asks by itself goes first; without one, and without
// this, nobody would be asked.
func (c *cli) askHere(ctx context.Context) (end func()) {
	nothing := func() {}
	if c.bus != "" || os.Getuid() == 0 || !isTerminal(os.Stdin) || !isTerminal(os.Stderr) {
		return nothing
	}
	ready, told, err := os.Pipe()
	if err != nil {
		return nothing
	}
	defer ready.Close()
	// It is the agent of its parent, and closes the descriptor when it is ready.
	agent := exec.CommandContext(ctx, polkitAgent, "--fallback", "--notify-fd", "3")
	agent.Stdin, agent.Stdout, agent.Stderr = os.Stdin, os.Stdout, os.Stderr
	agent.ExtraFiles = []*os.File{told}
	terminate := func() error { return agent.Process.Signal(syscall.SIGTERM) } // it puts the terminal back
	agent.Cancel, agent.WaitDelay = terminate, time.Second
	err = agent.Start()
	told.Close()
	if err != nil {
		return nothing
	}
	_ = ready.SetReadDeadline(time.Now().Add(agentTimeout))
	_, _ = io.Copy(io.Discard, ready)
	return func() {
		_ = terminate()
		_ = agent.Wait()
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
