// Mirror is a VPN app: what is sent to 198.18.0.0/24 comes back with its two
// addresses exchanged, so that the host itself answers there.
package main

import (
	"context"
	"log"
	"net/netip"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func main() {
	ctx := context.Background()
	c, err := client.Dial(ctx)
	if err != nil {
		log.Fatal(err)
	}
	app, err := c.RegisterProvider(ctx, "com.example.Mirror", client.ProviderOptions{})
	if err != nil {
		log.Fatal(err)
	}
	_, _ = app.CreateConfig(ctx, "Mirror", client.ConfigOptions{}) // it may be there already
	log.Fatal(app.Serve(ctx, carry))                               // whenever somebody connects it
}

func carry(ctx context.Context, s *client.Session) error {
	net := []netip.Prefix{netip.MustParsePrefix("198.18.0.2/24")}
	if _, err := s.SetParameters(ctx, client.Parameters{Addresses: net, InclusionList: net}); err != nil {
		return err
	}
	channel, err := s.OpenChannel(ctx, client.ChannelOptions{})
	if err != nil {
		return err
	}
	defer channel.Close()
	p, n := make([]byte, channel.Info().MaxMessage), 0
	for err = s.NotifyConnected(ctx); err == nil; _, err = channel.Write(p[:n]) {
		if n, err = channel.Read(p); err != nil {
			return err // io.EOF: disconnected
		}
		copy(p[12:], append(p[16:20:20], p[12:16]...)) // of IPv4
	}
	return err
}
