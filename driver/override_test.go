package driver_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver"
)

// A person who is asked whether another user's session may end holds up nobody
// but the one who asked.
func TestOverrideHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		second := b.create(provider, "Second")
		other := driver.Caller{UID: stranger.UID, Conn: ":1.30"}
		if _, err := b.RegisterProvider(other, app, driver.ProviderOptions{}, false); err != nil {
			t.Fatal(err)
		}
		theirs := b.create(other, "Theirs")
		b.connect(b.work)
		answer, done := make(chan error), make(chan error)
		go func() {
			_, err := b.Connect(t.Context(), stranger, theirs, driver.Connect{Override: func(ctx context.Context) error {
				select {
				case err := <-answer:
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			}})
			done <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := b.Connect(ctx, ui, second, driver.Connect{}); err != nil {
			t.Errorf("while another user is asked: %v", err)
		}
		answer <- nil
		if err := <-done; err != nil {
			t.Error(err)
		}
		if c, err := b.Config(ui, second); err != nil || c.State != driver.Idle || c.FailureReason != driver.ReasonReplaced {
			t.Errorf("%+v (%v) was not replaced", c, err)
		}
		b.Shutdown()
	})
}
