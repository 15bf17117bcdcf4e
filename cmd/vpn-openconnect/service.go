package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/cmdline"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/vpnenv"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// app is the provider of every connection that this program makes.
const app = "org.vpnprovider.OpenConnect"

// service is our place on the bus: the provider and its one session.
type service struct {
	client  *client.Client
	session *client.Session
	locked  bool // the config had a lockdown when it was connected

	channel   *client.Channel // nil before Carry
	endRelay  context.CancelFunc
	relayDone chan struct{}
}

// connect registers the app, finds or makes the config, and connects it. The
// returned command names a server also where the given one left that to the
// config. The caller must Close the service.
func connect(ctx context.Context, cmd cmdline.Command) (*service, cmdline.Command, error) {
	c, err := ui.Dial(ctx, cmd.Bus)
	if err != nil {
		return nil, cmd, err
	}
	defer ui.Ask(ctx, cmd.Bus)() // which ends before openconnect asks there
	s := &service{client: c}
	if cmd, err = s.connect(ctx, cmd); err != nil {
		s.Close()
		return nil, cmd, err
	}
	return s, cmd, nil
}

func (s *service) connect(ctx context.Context, cmd cmdline.Command) (cmdline.Command, error) {
	provider, err := s.client.RegisterProvider(ctx, app, client.ProviderOptions{DisplayName: "OpenConnect", Icon: "network-vpn"})
	if errors.Is(err, client.ErrAlreadyExists) {
		return cmd, errors.New("another vpn-openconnect of yours is running: end it first")
	}
	if err != nil {
		return cmd, err
	}
	cfg, cmd, err := config(ctx, provider, cmd)
	if err != nil {
		return cmd, err
	}
	if s.session, err = cfg.Connect(ctx); err != nil {
		return cmd, err
	}
	if p, err := cfg.Properties(ctx); err == nil {
		s.locked = p.Lockdown
	}
	go refuseOthers(provider, s.session)
	return cmd, nil
}

// config finds the config of the command, or makes it. What it keeps is what
// was typed last.
func config(ctx context.Context, p *client.Provider, cmd cmdline.Command) (*client.Config, cmdline.Command, error) {
	name := cmd.Name()
	cfg, err := p.FindConfig(ctx, name)
	switch {
	case errors.Is(err, client.ErrNotFound) && cmd.Server == "":
		return nil, cmd, fmt.Errorf("there is no config %q: name the SERVER", name)
	case errors.Is(err, client.ErrNotFound):
		cfg, err = p.CreateConfig(ctx, name, client.ConfigOptions{Data: cmd.Data()})
		return cfg, cmd, err
	case err != nil:
		return nil, cmd, err
	}
	kept, err := cfg.Properties(ctx)
	if err != nil {
		return nil, cmd, err
	}
	if cmd.Server == "" {
		cmd, err = cmd.WithData(kept.Data, os.ReadFile)
		return cfg, cmd, err
	}
	if !reflect.DeepEqual(kept.Data, cmd.Data()) {
		// The administrator's cannot be changed, which is no reason not to
		// connect.
		if err := cfg.Update(ctx, client.ConfigUpdate{Data: cmd.Data()}); err != nil && !errors.Is(err, client.ErrNotAuthorized) {
			return nil, cmd, err
		}
	}
	return cfg, cmd, nil
}

// refuseOthers answers for the app's other configs, which a user interface may
// try to connect while this program runs: it serves one.
func refuseOthers(p *client.Provider, own *client.Session) {
	for event := range p.Events() {
		if started, ok := event.(client.SessionStarted); ok && started.Session.Path() != own.Path() {
			_ = started.Session.NotifyFailure(context.Background())
		}
	}
}

// complain tells that openconnect's sockets cannot be exempted. That only
// matters in a lockdown: else the server's address is.
func (s *service) complain(err error) {
	if s.locked {
		say(os.Stderr, "openconnect may not get through the lockdown: %v", err)
	}
}

// Apply sets the parameters of the session.
func (s *service) Apply(ctx context.Context, v vpnenv.Settings) (warnings []string, err error) {
	return s.session.SetParameters(ctx, client.Parameters{
		Addresses:     v.Addresses,
		MTU:           uint32(v.MTU),
		InclusionList: v.Include,
		ExclusionList: v.Exclude,
		DNSServers:    v.DNS,
		DomainSearch:  v.Search,
		MatchDomains:  v.Match,
		AllowLAN:      v.AllowLAN,
		Reconnect:     true, // openconnect does, by itself
	})
}

// Carry moves packets between the session and openconnect from now on, and
// says that the VPN is connected. The channel gets the error that stops it, or
// nil.
func (s *service) Carry(ctx context.Context, packets *os.File) (<-chan error, error) {
	ch, err := s.session.OpenChannel(ctx, client.ChannelOptions{})
	if err != nil {
		return nil, err
	}
	relayCtx, cancel := context.WithCancel(context.Background())
	s.channel, s.endRelay, s.relayDone = ch, cancel, make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		defer close(s.relayDone)
		ended <- client.Relay(relayCtx, ch, packets)
	}()
	return ended, s.session.NotifyConnected(ctx)
}

// Messages of the platform.
func (s *service) Messages() <-chan client.Message { return s.session.Messages() }

// Acknowledge answers a message.
func (s *service) Acknowledge(ctx context.Context, kind client.MessageKind) error {
	return s.session.Acknowledge(ctx, kind)
}

// End ends the session, as failed or as intended, and returns when its network
// is undone. One that has ended already is fine.
func (s *service) End(ctx context.Context, failed bool) error {
	end := s.session.Disconnect
	if failed {
		end = s.session.NotifyFailure
	}
	err := end(ctx)
	if errors.Is(err, client.ErrNotFound) || errors.Is(err, client.ErrWrongState) {
		return nil
	}
	return err
}

// Close leaves the bus, which ends whatever is left, and stops the relay.
func (s *service) Close() {
	_ = s.client.Close()
	if s.channel != nil {
		s.endRelay()
		<-s.relayDone
		_ = s.channel.Close()
	}
}
