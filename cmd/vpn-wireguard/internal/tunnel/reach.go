package tunnel

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/wgconf"
)

const (
	// roundTime is how long an answer is waited for before the names of the
	// peers are looked up once more. WireGuard sends a handshake every 5 s.
	roundTime = 5 * time.Second
	pollTime  = 50 * time.Millisecond

	// lookInterval is how often the tunnel is looked at, see refresh.
	lookInterval = 30 * time.Second

	// staleTime after the last handshake a peer that is sent to is gone: a
	// new one is due after 120 s, plus its repetitions.
	staleTime = 135 * time.Second
)

// connect makes a peer answer over new sockets, and then lets the daemon route
// into the tunnel. It ends when it has succeeded, and fails where waiting does
// not help.
func (t *Tunnel) connect(ctx context.Context) error {
	t.once.forget()
	reconnect := t.up
	if err := ui.Retry(ctx, t.log.Say, t.bind); err != nil {
		return err
	}
	if reconnect {
		t.resolve(ctx, t.dialed(), false)
		t.renew()
	}
	if err := t.reach(ctx); err != nil {
		return err
	}
	return ui.Retry(ctx, t.log.Say, t.apply)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// bind opens the sockets, or others in their place: those of a network that is
// gone remember its addresses.
func (t *Tunnel) bind(ctx context.Context) error {
	open := t.wg.BindUpdate
	if !t.up {
		// WireGuard speaks as soon as it is up, and then not again for 5 s.
		t.resolve(ctx, t.dialed(), false)
		open = t.wg.Up
	}
	if err := open(); err != nil {
		return fmt.Errorf("cannot open the sockets of WireGuard: %w", err)
	}
	t.up = true
	return nil
}

// reach shakes hands until a peer answers. Where no peer has an endpoint there
// is nobody to be reached: they come to us.
func (t *Tunnel) reach(ctx context.Context) error {
	if len(t.dialed()) == 0 {
		return nil
	}
	before := t.received()
	for round := 0; ; round++ {
		answered, err := t.answered(ctx, before)
		if answered || err != nil {
			return err
		}
		if round == 0 {
			t.log.Say("no answer from %s so far", t.where())
		}
		// An endpoint that does not answer may be where the peer has roamed
		// to before: back to what the file says.
		t.resolve(ctx, t.dialed(), true)
	}
}

// renew has the peers shake hands once more, whenever they last did: nothing
// else has a peer answer for sure. WireGuard would do so every 5 s at most.
func (t *Tunnel) renew() {
	for _, p := range t.dialed() {
		if peer := t.wg.LookupPeer(device.NoisePublicKey(p.PublicKey)); peer != nil {
			peer.ExpireCurrentKeypairs()
		}
	}
}

// dialed are the peers with an endpoint.
func (t *Tunnel) dialed() []wgconf.Peer {
	var peers []wgconf.Peer
	for _, p := range t.config.Peers {
		if !p.Endpoint.IsZero() {
			peers = append(peers, p)
		}
	}
	return peers
}

func (t *Tunnel) where() string {
	var list []string
	for _, p := range t.dialed() {
		list = append(list, p.Endpoint.String())
	}
	return strings.Join(list, ", ")
}

// answered waits for anything of a peer's: wireguard-go counts what it has
// authenticated. A handshake has each peer answer that is there.
func (t *Tunnel) answered(ctx context.Context, before map[wgconf.Key]uint64) (bool, error) {
	for end := time.Now().Add(roundTime); time.Now().Before(end); {
		for _, p := range t.dialed() {
			if peer := t.wg.LookupPeer(device.NoisePublicKey(p.PublicKey)); peer != nil {
				_ = peer.SendHandshakeInitiation(false) // does nothing when it is too soon
			}
		}
		if err := sleep(ctx, pollTime); err != nil {
			return false, err
		}
		for key, bytes := range t.received() {
			if bytes > before[key] {
				return true, nil
			}
		}
	}
	return false, nil
}

// received are the bytes that came from each peer.
func (t *Tunnel) received() map[wgconf.Key]uint64 {
	all := map[wgconf.Key]uint64{}
	for _, p := range t.Status().Peers {
		all[p.PublicKey] = p.RxBytes
	}
	return all
}

// apply gives the daemon the parameters, which also ends a reconnect.
func (t *Tunnel) apply(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	p, warnings := parameters(t.config)
	more, err := t.tun.SetParameters(ctx, p)
	if err != nil {
		return err
	}
	if t.applied {
		return nil
	}
	for _, w := range append(warnings, more...) {
		t.log.Say("%s", w)
	}
	t.applied = true
	return t.session.NotifyConnected(ctx)
}

// refresh looks up the names of peers that were sent to and have not answered
// for long: their addresses may have changed, as those of home servers do.
func (t *Tunnel) refresh(ctx context.Context) error {
	if t.applied {
		t.resolve(ctx, t.stale(time.Now()), false)
	}
	return nil
}

// stale are the peers of refresh.
func (t *Tunnel) stale(now time.Time) []wgconf.Peer {
	var peers []wgconf.Peer
	status := map[wgconf.Key]Peer{}
	for _, p := range t.Status().Peers {
		status[p.PublicKey] = p
	}
	for _, p := range t.dialed() {
		seen := status[p.PublicKey]
		sent := seen.TxBytes > t.sent[p.PublicKey]
		t.sent[p.PublicKey] = seen.TxBytes
		unknown := t.resolved[p.PublicKey] == netip.AddrPort{}
		if unknown || sent && now.Sub(seen.LatestHandshake) > staleTime && !p.Endpoint.Addr().IsValid() {
			peers = append(peers, p)
		}
	}
	return peers
}
