package main

import (
	"context"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	wgo "golang.zx2c4.com/wireguard/tun"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/wgtun"
	"github.com/vpnprovider/vpnproviderd/test/bench"
)

// wireguardMTU is what wireguard-go gives its interfaces.
const wireguardMTU = 1420

// wireguard runs wireguard-go with the configuration o.peer, until it is
// killed: on the TUN that it inherits, or with a bus as an app.
func wireguard(o options) (r bench.Result, err error) {
	if o.bus == "" {
		own, err := tunDevice(firstFile)
		if err != nil {
			return r, err
		}
		return r, runWireGuard(own, conn.NewStdNetBind(), o.peer, func() error { return nil })
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := register(ctx, o, client.ProviderOptions{})
	if err != nil {
		return r, err
	}
	defer p.client.Close()
	s, err := p.connect(ctx)
	if err != nil {
		return r, err
	}
	dev, err := wgtun.OpenFormat(ctx, s, o.mode)
	if err != nil {
		return r, err
	}
	return r, runWireGuard(dev, wgtun.NewBind(s), o.peer, func() error {
		if _, err := dev.SetParameters(ctx, parameters(wireguardMTU)); err != nil {
			return err
		}
		return s.NotifyConnected(ctx)
	})
}

// runWireGuard calls up once the device could take packets.
func runWireGuard(t wgo.Device, bind conn.Bind, config string, up func() error) error {
	wg := device.NewDevice(t, bind, device.NewLogger(device.LogLevelError, ""))
	defer wg.Close()
	if err := wg.IpcSet(config); err != nil {
		return err
	}
	if err := wg.Up(); err != nil {
		return err
	}
	if err := up(); err != nil {
		return err
	}
	ready()
	<-wg.Wait()
	return errNoResult
}
