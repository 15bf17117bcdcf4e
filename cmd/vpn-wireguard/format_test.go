package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/wgtun"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Both formats of the packet channel carry a stream of the kernel's unharmed,
// both ways: a mirror exchanges the addresses of each packet, so the host
// talks to itself.
func TestFormats(t *testing.T) {
	t.Parallel()
	top := harness.NewTopology(t)
	bus := harness.StartBus(t, top.Host, harness.BusOptions{})
	harness.StartDaemon(t, top.Host, bus, harness.DaemonOptions{})
	c, err := client.Dial(t.Context(), client.WithAddress(bus.Address))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := c.RegisterProvider(t.Context(), app, client.ProviderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"", wire.FormatPacket, wire.FormatOffload} {
		cfg, err := p.CreateConfig(t.Context(), "mirror "+format, client.ConfigOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := cfg.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var d *wgtun.Device
		if format == "" {
			d, err = wgtun.Open(t.Context(), s)
		} else {
			d, err = wgtun.OpenFormat(t.Context(), s, format)
		}
		if err != nil {
			t.Fatalf("%q: %v", format, err)
		}
		mirrored := make(chan error, 1)
		go func() { mirrored <- mirror(d) }()
		_, err = d.SetParameters(t.Context(), client.Parameters{
			Addresses:     []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24"), netip.MustParsePrefix("fd08::2/64")},
			InclusionList: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24"), netip.MustParsePrefix("2001:2::/64")},
			MTU:           1420,
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, address := range []string{"198.18.0.9", "2001:2::9"} {
			begun := time.Now()
			const size = 20 << 20
			stream(t, top.Host, address, size)
			t.Logf("%q, %s: %.2f Gbit/s", format, address, size*8/1e9/time.Since(begun).Seconds())
		}
		if err := cfg.Disconnect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-mirrored; !errors.Is(err, os.ErrClosed) {
			t.Errorf("%q: %v", format, err)
		}
		_ = d.Close()
	}
}

// mirror exchanges the addresses of packets, which leaves checksums right.
func mirror(d *wgtun.Device) error {
	const headroom = device.MessageTransportHeaderSize
	bufs, sizes := make([][]byte, d.BatchSize()), make([]int, d.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, device.MaxMessageSize)
	}
	for {
		n, err := d.Read(bufs, sizes, headroom)
		if err != nil {
			return err
		}
		back := make([][]byte, n)
		for i := range n {
			back[i] = bufs[i][:headroom+sizes[i]]
			p, at, size := back[i][headroom:], 12, 4
			if p[0]>>4 == 6 {
				at, size = 8, 16
			}
			for k := range size {
				p[at+k], p[at+size+k] = p[at+size+k], p[at+k]
			}
		}
		if _, err := d.Write(back, headroom); err != nil {
			return err
		}
	}
}

// stream sends bytes to a server on the host itself, which sends them back.
func stream(t *testing.T, host *harness.Namespace, address string, size int) {
	t.Helper()
	listener := host.Listen(t, "tcp", "[::]:7000")
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, conn)
	}()
	conn, err := host.Dial("tcp", net.JoinHostPort(address, "7000"), harness.Timeout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(3 * harness.Timeout))
	sent := bytes.Repeat([]byte("0123456789abcdef!"), size/17+1)[:size]
	go func() { _, _ = conn.Write(sent) }()
	got := make([]byte, size)
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%s: the bytes that came back are others", address)
	}
}
