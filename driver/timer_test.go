package driver_test

import (
	"os"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/drivertest"
)

// A channel that comes in time counts, though it is attached only after the time.
func TestChannelInTime(t *testing.T) {
	t.Parallel()
	w := drivertest.New()
	opts := w.Options()
	opts.ChannelTimeout = time.Second
	m, err := driver.NewManager(opts)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Manager: m, World: w, t: t}
	if _, err := m.RegisterProvider(provider, app, driver.ProviderOptions{}, false); err != nil {
		t.Fatal(err)
	}
	b.work = b.create(provider, "Work")
	s := b.connect(b.work)
	open := func() error {
		channel, _, err := b.OpenChannel(provider, s, driver.FormatPacket)
		if err == nil {
			err = channel.Close()
		}
		return err
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	release := b.Hold("attach")
	b.Tunnel().Events.ChannelClosed(os.ErrClosed)
	time.AfterFunc(2*opts.ChannelTimeout, release)
	if err := open(); err != nil {
		t.Error(err)
	}
	time.Sleep(opts.ChannelTimeout) // nothing to wait for: the session must live
	b.state(driver.Connecting, "")
	b.Shutdown()
}
