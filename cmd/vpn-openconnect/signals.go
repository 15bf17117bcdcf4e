package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/openconnect"
)

// secondHand is how long openconnect has to act on a signal of the terminal's:
// as long as a logout may take, which is a connection of its own with some
// servers.
const secondHand = openconnect.LogoutTime

// signals are those that mean openconnect: end with logout (INT, TERM) or
// without (HUP), show statistics (USR1), reconnect (USR2).
func signals() []os.Signal {
	return append(ui.EndSignals(), unix.SIGUSR1, unix.SIGUSR2)
}

// signal passes a signal on. Of what the terminal sends to its foreground, Ctrl-C
// and a hangup, openconnect has got its own: a second one would break off the
// logout that the first began. So that is passed on only if openconnect does
// not end, as when somebody sent it to us alone.
func (s *supervisor) signal(sig os.Signal) {
	if (sig == unix.SIGINT || sig == unix.SIGHUP) && ui.InForeground() {
		s.again = append(s.again, sig)
		s.resend = time.After(secondHand)
		return
	}
	if err := s.process.Signal(sig); err != nil {
		say(s.log, "%v", err)
	}
}

func (s *supervisor) signalAgain() {
	for _, sig := range s.again {
		if err := s.process.Signal(sig); err != nil {
			say(s.log, "%v", err)
		}
	}
	s.again = nil
}
