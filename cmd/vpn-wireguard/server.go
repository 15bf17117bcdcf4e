package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/tunnel"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// server is the provider of the user's WireGuard tunnels: it connects whichever
// config the user connects, from whatever user interface. A user has one.
type server struct {
	*cli
	provider *client.Provider

	sessions sync.WaitGroup
	mu       sync.Mutex
	tunnels  map[string]*tunnel.Tunnel // by the name of the config
}

// newServer registers. The error is client.ErrAlreadyExists where another
// process of the user is the provider.
func (c *cli) newServer(ctx context.Context, d *client.Client) (*server, error) {
	provider, err := d.RegisterProvider(ctx, app, client.ProviderOptions{DisplayName: "WireGuard", Icon: "network-vpn"})
	if err != nil {
		return nil, err
	}
	return &server{cli: c, provider: provider, tunnels: map[string]*tunnel.Tunnel{}}, nil
}

// run serves until ctx is done, and then ends all sessions, or until the
// daemon is gone.
func (s *server) run(ctx context.Context) error {
	socket, err := s.listen()
	if err != nil {
		s.complain("there will be no status: %v", err)
	} else {
		defer socket.close()
	}
	defer s.sessions.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-s.provider.Events():
			if !ok {
				return s.provider.Err()
			}
			switch event := event.(type) {
			case client.SessionStarted:
				s.sessions.Go(func() { s.session(ctx, event.Session) })
			case client.UIEvent:
				s.complain("there is no window to show: change the file, or import another one")
			}
		}
	}
}

// session is one, from its beginning to its end.
func (s *server) session(ctx context.Context, session *client.Session) {
	properties, err := session.Config().Properties(ctx)
	name := properties.Name
	if err == nil {
		err = s.carry(ctx, session, properties)
	}
	if err == nil {
		return
	}
	if _, told := errors.AsType[tunnel.EndError](err); !told {
		s.complain("%s: %v", name, err)
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	_ = session.NotifyFailure(ending) // ended already, in most cases
}

// carry runs the tunnel of a session.
func (s *server) carry(ctx context.Context, session *client.Session, p client.ConfigProperties) error {
	config, err := load(fileOf(p))
	if err != nil {
		return err
	}
	for _, w := range config.Warnings {
		s.complain("%s: %s", p.Name, w)
	}
	log := tunnel.Log{
		Say:   func(format string, args ...any) { s.complain("%s: %s", p.Name, fmt.Sprintf(format, args...)) },
		Debug: func(string, ...any) {},
	}
	if s.verbose {
		log.Debug = log.Say
	}
	t, err := tunnel.Open(ctx, session, config, log)
	if err != nil {
		return err
	}
	s.note(p.Name, t)
	defer s.forget(p.Name, t)
	return t.Run(ctx)
}

func (s *server) note(name string, t *tunnel.Tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tunnels[name] = t
}

// forget a tunnel, unless another has taken its place meanwhile.
func (s *server) forget(name string, t *tunnel.Tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnels[name] == t {
		delete(s.tunnels, name)
	}
}

// statuses of the tunnels that run, by name.
func (s *server) statuses() map[string]tunnel.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]tunnel.Status, len(s.tunnels))
	for name, t := range s.tunnels {
		all[name] = t.Status()
	}
	return all
}

// untilIdle waits until no tunnel has run for a while, or ctx is done.
func (s *server) untilIdle(ctx context.Context) {
	const while, step = 3 * time.Second, 100 * time.Millisecond
	for quiet := time.Duration(0); quiet < while && ctx.Err() == nil; quiet += step {
		if len(s.statuses()) > 0 {
			quiet = 0
		}
		time.Sleep(step)
	}
}
