package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/wgconf"
)

// lookupTime bounds the search for one peer.
const lookupTime = 5 * time.Second

// resolve finds the endpoints of peers, and tells wireguard-go of those that
// are others than before, with force of all. What is not found stays what it
// was: it may well be right still.
func (t *Tunnel) resolve(ctx context.Context, peers []wgconf.Peer, force bool) {
	for _, p := range peers {
		found, err := t.find(ctx, p.Endpoint)
		if ctx.Err() != nil || isOver(err) {
			return
		}
		if err != nil {
			t.once.Say("%v", err)
			continue
		}
		if found == t.resolved[p.PublicKey] && !force {
			continue
		}
		err = t.wg.IpcSet(fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", p.PublicKey.Hex(), found))
		if err != nil {
			t.once.Say("cannot set the endpoint %v: %v", found, err)
			continue
		}
		t.resolved[p.PublicKey] = found
	}
}

// find gives the first address of a host to which there is a way outside the
// tunnel.
func (t *Tunnel) find(ctx context.Context, e wgconf.Endpoint) (netip.AddrPort, error) {
	if addr := e.Addr(); addr.IsValid() {
		return netip.AddrPortFrom(addr, e.Port), nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	addresses, err := t.resolver(ctx).LookupNetIP(ctx, "ip", e.Host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("cannot find the peer: %w", err)
	}
	last := errors.New("it has no address")
	dialer := net.Dialer{ControlContext: t.session.DialControl}
	for _, addr := range addresses {
		found := netip.AddrPortFrom(addr.Unmap(), e.Port)
		// Nothing is sent: the kernel says whether it has a route and an
		// address for it.
		conn, err := dialer.DialContext(ctx, "udp", found.String())
		if err == nil {
			return found, conn.Close()
		}
		last = err
	}
	return netip.AddrPort{}, fmt.Errorf("cannot reach the peer %s: %w", e.Host, last)
}

// resolver is the system's until the tunnel has the DNS. From then on the name
// servers of the physical network are asked, outside the tunnel.
func (t *Tunnel) resolver(ctx context.Context) *net.Resolver {
	if !t.applied {
		return net.DefaultResolver
	}
	var servers []netip.Addr
	if p, err := t.session.Properties(ctx); err == nil && p.Uplink != nil {
		servers = p.Uplink.DNSServers
	}
	var turn atomic.Uint32
	dialer := net.Dialer{ControlContext: t.session.DialControl}
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if len(servers) > 0 {
				next := servers[int(turn.Add(1)-1)%len(servers)]
				address = netip.AddrPortFrom(next, 53).String()
			}
			return dialer.DialContext(ctx, network, address)
		},
	}
}
