package ui

import (
	"os"
	"os/signal"
	"syscall"
)

// EndSignals are the signals at which a program ends what it began: Ctrl-C,
// being told to, and the end of its terminal, unless nohup(1) has it ignore that.
func EndSignals() []os.Signal {
	list := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		list = append(list, syscall.SIGHUP)
	}
	return list
}
