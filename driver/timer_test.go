package driver_test

import (
	"io"
	"os"
	"testing"
	"testing/synctest"
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
	b.Tunnel().EndChannel(os.ErrClosed)
	time.AfterFunc(2*opts.ChannelTimeout, release)
	if err := open(); err != nil {
		t.Error(err)
	}
	time.Sleep(opts.ChannelTimeout) // nothing to wait for: the session must live
	b.state(driver.Connecting, "")
	b.Shutdown()
}

// The end of a channel that is told of only when there is another one is none.
func TestChannelReplacedBeforeItsEndIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		b.setParameters(s)
		for range 2 {
			b.Tunnel().LoseChannel()
			channel, _, err := b.OpenChannel(provider, s, driver.FormatPacket)
			if err != nil {
				t.Fatal(err)
			}
			defer channel.Close()
			b.Tunnel().Events.ChannelClosed(io.EOF)
			time.Sleep(time.Minute)
			b.state(driver.Configured, "")
		}
		b.Tunnel().EndChannel(io.EOF) // and of this one it counts
		time.Sleep(5 * time.Second)
		synctest.Wait()
		b.state(driver.Failed, driver.ReasonChannelClosed)
	})
}
