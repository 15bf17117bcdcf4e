package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/openconnect"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/vpnenv"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// callTime bounds each call of the daemon's: none of these asks the user.
const callTime = 25 * time.Second

// vpnSession is the session that openconnect's tunnel is made with. Its methods
// are those of service.
type vpnSession interface {
	Apply(context.Context, vpnenv.Settings) (warnings []string, err error)
	Carry(context.Context, *os.File) (<-chan error, error)
	Messages() <-chan client.Message
	Acknowledge(context.Context, client.MessageKind) error
	End(ctx context.Context, failed bool) error
}

// supervisor keeps an openconnect and a session together: neither outlives the
// other. All of it runs in one goroutine.
type supervisor struct {
	process *openconnect.Process
	session vpnSession
	quiet   bool      // openconnect's output tells nothing
	log     io.Writer // for messages of ours

	env     map[string]string // nil until openconnect has a tunnel
	packets *os.File
	mtu     int          // the latest that openconnect found, 0: none
	broken  <-chan error // nil until packets flow
	stale   bool         // the network below changed: Apply is due once the server is reached
	again   []os.Signal  // to be sent again, see signal
	resend  <-chan time.Time

	err error // the first thing that went wrong here
}

// run returns when openconnect and the session have ended. The error is of
// this side; openconnect's is its exit code.
func (s *supervisor) run(signals <-chan os.Signal) error {
	messages := s.session.Messages()
	for {
		select {
		case <-s.process.Done():
			return s.ended()
		case tunnel := <-s.process.Tunnel():
			s.up(tunnel)
		case event := <-s.process.Events():
			s.event(event)
		case message, ok := <-messages:
			if !ok {
				messages = nil
				s.process.End()
				continue
			}
			s.message(message)
		case err := <-s.broken:
			s.broken = nil
			s.fail(err)
		case sig := <-signals:
			s.signal(sig)
		case <-s.resend:
			s.signalAgain()
		}
	}
}

// ended ends the session after openconnect.
func (s *supervisor) ended() error {
	failed := s.err != nil || s.process.ExitCode() != 0
	if err := s.end(failed); err != nil && s.err == nil {
		s.err = err
	}
	if s.packets != nil {
		_ = s.packets.Close()
	}
	return s.err
}

func (s *supervisor) end(failed bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	return s.session.End(ctx, failed)
}

// fail gives up: the session first, so that nothing waits for openconnect's
// logout. nil is no reason to.
func (s *supervisor) fail(err error) {
	if err == nil || s.err != nil {
		return
	}
	s.err = err
	if err := s.end(true); err != nil {
		say(s.log, "%v", err)
	}
	s.process.End()
}

// up makes the tunnel that openconnect asks for.
func (s *supervisor) up(tunnel openconnect.Tunnel) {
	if tunnel.Err != nil {
		s.fail(tunnel.Err)
		return
	}
	s.env, s.packets = tunnel.Env, tunnel.Packets
	settings, err := s.apply()
	if err != nil {
		s.fail(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if s.broken, err = s.session.Carry(ctx, s.packets); err != nil {
		s.fail(err)
		return
	}
	for line := range strings.Lines(settings.Banner) {
		fmt.Fprintf(s.log, "| %s\n", strings.TrimRight(line, "\n"))
	}
	say(s.log, "connected: %v, %d block(s) through the tunnel, %d outside", settings.Addresses, len(settings.Include), len(settings.Exclude))
}

// apply gives the daemon what openconnect's script was told, with the MTU of
// now.
func (s *supervisor) apply() (vpnenv.Settings, error) {
	const mtuVariable = "INTERNAL_IP4_MTU"
	settings, err := vpnenv.Parse(s.env)
	if err == nil && s.mtu > 0 && s.mtu < settings.MTU {
		s.env[mtuVariable] = strconv.Itoa(s.mtu)
		settings, err = vpnenv.Parse(s.env)
	}
	if err != nil {
		return settings, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	var warnings []string
	err = ui.Retry(ctx, func(format string, args ...any) { say(s.log, format, args...) }, func(ctx context.Context) (err error) {
		warnings, err = s.session.Apply(ctx, settings)
		return err
	})
	for _, notice := range append(settings.Notices, warnings...) {
		say(s.log, "%s", notice)
	}
	return settings, err
}

// event acts on what openconnect's output tells.
func (s *supervisor) event(e openconnect.Event) {
	switch e.Kind {
	case openconnect.Reached:
		if s.stale {
			s.refresh()
		}
	case openconnect.MTUChanged:
		s.lowerMTU(e.MTU)
	case openconnect.NoScript:
		s.fail(errors.New("openconnect cannot pass on what the server sent: it is too much, such as thousands of routes"))
	}
}

// lowerMTU follows openconnect, which cuts longer packets. Nonsense, which a
// server could have put into the output, is not followed.
func (s *supervisor) lowerMTU(mtu int) {
	if mtu < 576 || s.mtu > 0 && mtu >= s.mtu {
		return
	}
	s.mtu = mtu
	if s.env != nil {
		s.refresh()
	}
}

// refresh applies the parameters again, which also ends a reconnect.
func (s *supervisor) refresh() {
	s.stale = false
	if _, err := s.apply(); err != nil {
		s.fail(err)
	}
}

// message acts on what the platform says.
func (s *supervisor) message(m client.Message) {
	switch m.Kind {
	case client.MessageDisconnected:
		if m.Error != "" && s.err == nil {
			s.err = fmt.Errorf("the session ended: %s", m.Error)
		}
		s.process.End()
	case client.MessageError:
		say(s.log, "%s", m.Error)
	case client.MessageLinkDown:
		say(s.log, "the network is gone, waiting for it")
	case client.MessageLinkUp, client.MessageLinkChanged, client.MessageResume:
		s.reconnect()
	case client.MessageSuspend: // nothing to save: openconnect finds out by itself
		ctx, cancel := context.WithTimeout(context.Background(), callTime)
		defer cancel()
		if err := s.session.Acknowledge(ctx, m.Kind); err != nil {
			say(s.log, "%v", err)
		}
	}
}

// reconnect has openconnect connect anew at once. By itself it would notice
// only after its dead peer detection, and then try at growing intervals.
func (s *supervisor) reconnect() {
	say(s.log, "the network has changed, reconnecting")
	s.stale = true
	if err := s.process.Signal(unix.SIGUSR2); err != nil {
		say(s.log, "%v", err)
	}
	if s.quiet {
		s.refresh()
	}
}
