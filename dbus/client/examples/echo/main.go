// Echo is the smallest VPN app: whoever connects its config Echo reaches
// 198.18.0.0/24 through it, where the app itself answers every ping.
package main

import (
	"context"
	"errors"
	"log"
	"net/netip"
	"os"
	"os/signal"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	c, err := client.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	provider, err := c.RegisterProvider(ctx, "com.example.Echo", client.ProviderOptions{DisplayName: "Echo"})
	if err != nil {
		return err
	}
	if _, err := provider.CreateConfig(ctx, "Echo", client.ConfigOptions{}); err != nil && !errors.Is(err, client.ErrAlreadyExists) {
		return err
	}
	if err := provider.Serve(ctx, serve); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serve is one session, from `connected` to its end.
func serve(ctx context.Context, s *client.Session) error {
	_, err := s.SetParameters(ctx, client.Parameters{
		Addresses:     []netip.Prefix{netip.MustParsePrefix("198.18.0.2/24")},
		InclusionList: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")},
	})
	if err != nil {
		log.Print(err)
		return err
	}
	channel, err := s.OpenChannel(ctx, client.ChannelOptions{})
	if err != nil {
		return err
	}
	defer channel.Close()
	if err := s.NotifyConnected(ctx); err != nil {
		return err
	}
	packet := make([]byte, channel.Info().MaxMessage)
	for {
		n, err := channel.Read(packet)
		if err != nil {
			return err // the session has ended
		}
		if !pong(packet[:n]) {
			continue
		}
		if _, err := channel.Write(packet[:n]); err != nil {
			return err
		}
	}
}

// pong turns an ICMP echo request into its reply, in place: the addresses
// change places, and 8 becomes 0, which the checksum follows.
func pong(p []byte) bool {
	if len(p) < 28 || p[0] != 0x45 || p[9] != 1 || p[20] != 8 {
		return false
	}
	for i := range 4 {
		p[12+i], p[16+i] = p[16+i], p[12+i]
	}
	p[20] = 0
	sum := uint32(p[22])<<8 + uint32(p[23]) + 8<<8
	sum += sum >> 16
	p[22], p[23] = byte(sum>>8), byte(sum)
	return true
}
