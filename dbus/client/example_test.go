package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"testing"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
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

// A user interface: the states of all configs, as they change.
func ExampleClient_Watch() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := show(ctx, os.Stdout); err != nil {
		log.Print(err)
	}
}

func show(ctx context.Context, out io.Writer) error {
	c, err := client.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	changes, err := c.Watch(ctx)
	if err != nil {
		return err
	}
	for change := range changes { // ends with ctx
		if change.Config != nil {
			fmt.Fprintf(out, "%s: %s\n", change.Config.Name, change.Config.State)
		}
	}
	return ctx.Err()
}

// Connect a config and wait until the VPN works.
func ExampleConfig_Connect() {
	if err := connect(context.Background(), "com.example.PlainVPN", "Plain"); err != nil {
		log.Print(err)
	}
}

func connect(ctx context.Context, app, name string) error {
	c, err := client.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	config, err := c.FindConfig(ctx, app, name)
	if errors.Is(err, client.ErrNotFound) {
		return fmt.Errorf("make a config first: %w", err)
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx) // ends Watch
	defer cancel()
	changes, err := c.Watch(ctx) // before Connect: no change is missed
	if err != nil {
		return err
	}
	if _, err := config.Connect(ctx); err != nil {
		return err
	}
	for change := range changes {
		if change.Kind != client.Changed || change.Config == nil || change.Config.Path != config.Path() {
			continue
		}
		switch change.Config.State {
		case client.StateConnected:
			return nil
		case client.StateFailed:
			return errors.New(change.Config.FailureReason)
		default: // on the way
		}
	}
	return client.ErrClosed
}

// What the examples do is what they say.
func TestExamples(t *testing.T) {
	address := clienttest.Bus(t)
	service := clienttest.Start(t, address)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- run(ctx, server.LocalAddr().String()) }()
	eventually(t, "the app registers", func() bool { return service.Member("com.example.PlainVPN") != "" })
	path := clienttest.ConfigPath("com.example.PlainVPN", "Plain")
	shown, screen := io.Pipe()
	go func() { ended <- show(ctx, screen) }()
	eventually(t, "the user connects", func() bool { return connect(ctx, "com.example.PlainVPN", "Plain") == nil })
	states := make([]byte, 1024)
	for !bytes.Contains(states, []byte("Plain: connected\n")) {
		n, err := shown.Read(states)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(strings.TrimSpace(string(states[:n])))
	}

	shown.Close() // nobody looks at the rest

	// A packet to the server and back.
	packet, got := []byte("a packet"), make([]byte, 100)
	c := dial(t, address)
	sessions, err := c.ListSessions(ctx)
	if err != nil || len(sessions) != 1 || sessions[0].Config != path {
		t.Fatalf("sessions %v, %v", sessions, err)
	}
	host := service.Channel(sessions[0].Path)
	if _, err := host.Write(packet); err != nil {
		t.Fatal(err)
	}
	n, app, err := server.ReadFrom(got)
	if err != nil || !bytes.Equal(got[:n], packet) {
		t.Fatalf("the server got %q, %v", got[:n], err)
	}
	if _, err := server.WriteTo(packet, app); err != nil {
		t.Fatal(err)
	}
	if n, err := host.Read(got); err != nil || !bytes.Equal(got[:n], packet) {
		t.Fatalf("the host got %q, %v", got[:n], err)
	}
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
