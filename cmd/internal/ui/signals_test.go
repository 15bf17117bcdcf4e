package ui

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"
)

// Under nohup the end of the terminal ends nothing.
func TestEndSignals(t *testing.T) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // the tests may run under nohup
	if !slices.Contains(EndSignals(), os.Signal(syscall.SIGHUP)) {
		t.Error("a hangup does not end a program")
	}
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	if slices.Contains(EndSignals(), os.Signal(syscall.SIGHUP)) {
		t.Error("a hangup that is ignored ends a program")
	}
}
