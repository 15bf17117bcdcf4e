package client_test

import (
	"context"
	"log"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// A complete app for the simplest of all VPN protocols: each UDP datagram is
// one IP packet, without any encryption.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, "192.0.2.7:5555"); err != nil {
		log.Print(err)
	}
}

func run(ctx context.Context, server string) error {
	c, err := client.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := c.RegisterProvider(ctx, "com.example.PlainVPN", client.ProviderOptions{DisplayName: "Plain VPN"})
	if err != nil {
		return err
	}
	if _, err := p.FindConfig(ctx, "Plain"); err != nil {
		if _, err := p.CreateConfig(ctx, "Plain", client.ConfigOptions{Data: map[string]any{"server": server}}); err != nil {
			return err
		}
	}
	return p.Serve(ctx, func(ctx context.Context, s *client.Session) error {
		go func() {
			for m := range s.Messages() {
				log.Printf("%s %s", m.Kind, m.Error)
			}
		}()
		err := carry(ctx, s)
		if err != nil && ctx.Err() == nil {
			log.Print(err)
		}
		return err
	})
}

// carry moves packets until the session or the server ends.
func carry(ctx context.Context, s *client.Session) error {
	cfg, err := s.Config().Properties(ctx)
	if err != nil {
		return err
	}
	address, _ := cfg.Data["server"].(string)
	dialer := net.Dialer{ControlContext: s.DialControl} // past the tunnel
	server, err := dialer.DialContext(ctx, "udp", address)
	if err != nil {
		return err
	}
	defer server.Close()
	_, err = s.SetParameters(ctx, client.Parameters{
		Addresses:     []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")},
		InclusionList: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
		DNSServers:    []netip.Addr{netip.MustParseAddr("10.8.0.1")},
		MTU:           1400,
	})
	if err != nil {
		return err
	}
	ch, err := s.OpenChannel(ctx, client.ChannelOptions{})
	if err != nil {
		return err
	}
	if err := s.NotifyConnected(ctx); err != nil {
		return err
	}

	// Whichever direction ends first ends the other.
	end := sync.OnceFunc(func() { _, _ = ch.Close(), server.Close() })
	defer context.AfterFunc(ctx, end)()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer end()
		packet := make([]byte, ch.Info().MaxMessage)
		for {
			n, err := server.Read(packet)
			if err != nil {
				return
			}
			if _, err := ch.Write(packet[:n]); err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		defer end()
		packets, sizes := buffers(64, ch.Info().MaxMessage)
		for {
			n, err := ch.ReadPackets(packets, sizes)
			if err != nil {
				return
			}
			for i := range n {
				_, _ = server.Write(packets[i][:sizes[i]])
			}
		}
	})
	wg.Wait()
	return nil
}
