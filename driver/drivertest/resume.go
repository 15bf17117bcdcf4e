package drivertest

import (
	"context"
	"fmt"
	"slices"

	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/routing"
)

// Resume is driver.Network.
func (w *World) Resume(ctx context.Context, want routing.Config, lockdown bool) error {
	err := w.enter(ctx, "resume")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.network, w.locked = want, w.locked || lockdown
	w.log = append(w.log, "resume")
	return err
}

// Sweep is driver.Network.
func (w *World) Sweep(ctx context.Context, lockdown bool) error {
	if err := w.enter(ctx, "sweep"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.network, w.locked = routing.Config{}, w.locked || lockdown
	w.log = append(w.log, "sweep")
	return nil
}

func (w *World) keep(text []byte) error {
	if err := w.enter(context.Background(), "keep"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = slices.Clone(text)
	return nil
}

// Kept is what was kept last, for Manager.Resume.
func (w *World) Kept() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.kept)
}

// Adopt is driver.Opener: the last tunnel of that link that is open goes on as
// another one.
func (w *World) Adopt(link routing.Link, passes *driver.Traffic, events driver.TunnelEvents) (driver.Tunnel, bool, error) {
	if err := w.enter(context.Background(), "adopt"); err != nil {
		return nil, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, former := range slices.Backward(w.tunnels) {
		if former.closed || linkOf(former.Slot) != link {
			continue
		}
		t := &Tunnel{world: w, Slot: former.Slot, Events: events, channel: former.channel, format: former.format}
		if passes != nil {
			t.traffic = *passes
		}
		former.closed, former.channel = true, nil
		w.tunnels = append(w.tunnels, t)
		return t, t.channel != nil, nil
	}
	return nil, false, fmt.Errorf("there is no tunnel %s", link.Name)
}

func linkOf(slot int) routing.Link {
	return routing.Link{Name: fmt.Sprintf("vpn%d", slot), Index: 100 + slot, Slot: slot}
}

// LoseChannel has the client end the channel while nobody looks.
func (t *Tunnel) LoseChannel() {
	t.world.mu.Lock()
	defer t.world.mu.Unlock()
	if t.channel != nil {
		t.channel.Close()
		t.channel = nil
	}
}
