package driver_test

import (
	"testing"
	"testing/synctest"

	"github.com/vpnprovider/vpnproviderd/driver"
)

// The owner's uid and root may capture, and nobody else; so many at a time.
func TestOpenCapture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		_, err := b.OpenCapture(stranger, s)
		kind(t, err, driver.KindNotFound)
		manager := stranger
		manager.Others = true
		_, err = b.OpenCapture(manager, s)
		kind(t, err, driver.KindNotOwner)
		for _, by := range []driver.Caller{ui, root} {
			stream, err := b.OpenCapture(by, s)
			if err != nil {
				t.Fatal(err)
			}
			stream.Close()
		}
		_, err = b.OpenCapture(provider, s)
		kind(t, err, driver.KindLimitExceeded)
	})
}
