package driver_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/vpnprovider/vpnproviderd/driver"
)

var errNo = driver.Errorf(driver.KindNotAuthorized, "no")

// person answers about apps, and counts the questions.
type person struct {
	err   error
	asked int
}

func (p *person) trust(context.Context, string) error {
	p.asked++
	return p.err
}

func (b *bench) connectAsking(id driver.ConfigID, p *person) error {
	_, err := b.Connect(b.t.Context(), ui, id, driver.Connect{Trust: p.trust})
	b.Disconnect(ui, id)
	return err
}

// A yes is kept over restarts until the app is forgotten, a no is not.
func TestConsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		p := &person{err: errNo}
		kind(t, b.connectAsking(b.work, p), driver.KindNotAuthorized)
		p.err = nil
		for range 2 {
			if err := b.connectAsking(b.work, p); err != nil {
				t.Fatal(err)
			}
		}
		if p.asked != 2 {
			t.Errorf("asked %d times, want twice: the no and the yes", p.asked)
		}
		b.Shutdown()

		again, err := driver.NewManager(b.Options())
		if err != nil {
			t.Fatal(err)
		}
		b.Manager = again
		if _, err := b.RegisterProvider(provider, app, driver.ProviderOptions{}, false); err != nil {
			t.Fatal(err)
		}
		if err := b.connectAsking(b.work, p); err != nil || p.asked != 2 {
			t.Errorf("after a restart: %v, asked %d times", err, p.asked)
		}
		// Removing its config is not forgetting the app.
		if err := b.RemoveConfig(ui, b.work); err != nil {
			t.Fatal(err)
		}
		b.work = b.create(provider, "Work")
		if err := b.connectAsking(b.work, p); err != nil || p.asked != 2 {
			t.Errorf("of another config: %v, asked %d times", err, p.asked)
		}
		if err := b.ForgetProvider(ui, app); err != nil {
			t.Fatal(err)
		}
		b.work, p.err = b.create(provider, "Work"), errNo
		kind(t, b.connectAsking(b.work, p), driver.KindNotAuthorized)
		b.Shutdown()
	})
}

// An app that is neither registered nor has configs is forgotten all the same,
// once.
func TestForgetConsentAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		p := &person{}
		if err := b.connectAsking(b.work, p); err != nil {
			t.Fatal(err)
		}
		if err := b.RemoveConfig(ui, b.work); err != nil {
			t.Fatal(err)
		}
		if err := b.UnregisterProvider(provider, app); err != nil {
			t.Fatal(err)
		}
		kind(t, b.ForgetProvider(stranger, app), driver.KindNotFound)
		kind(t, b.Manager.ForgetProvider(stranger, ui.UID, app), driver.KindNotFound)
		if err := b.Manager.ForgetProvider(root, ui.UID, app); err != nil {
			t.Error(err)
		}
		kind(t, b.ForgetProvider(ui, app), driver.KindNotFound)
	})
}

// What cannot be stored is neither given nor, for longer than the process
// lives, taken back; and both are told.
func TestConsentNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		p := &person{}
		b.Fail("consent", true)
		kind(t, b.connectAsking(b.work, p), driver.KindFailed)
		b.Fail("consent", false)
		if err := b.connectAsking(b.work, p); err != nil || p.asked != 2 {
			t.Errorf("%v, asked %d times", err, p.asked)
		}
		b.Fail("consent", true)
		kind(t, b.ForgetProvider(ui, app), driver.KindFailed)
		p.err = errNo
		kind(t, b.connectAsking(b.work, p), driver.KindNotAuthorized)
	})
}

// The app is forgotten while its user is asked: the answer comes too late, also
// where it is a yes and the config is there again.
func TestConsentTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		_, err := b.Connect(t.Context(), ui, b.work, driver.Connect{Trust: func(context.Context, string) error {
			if err := b.ForgetProvider(ui, app); err != nil {
				t.Error(err)
			}
			b.work = b.create(provider, "Work")
			return nil
		}})
		kind(t, err, driver.KindFailed)
		p := &person{err: errNo}
		kind(t, b.connectAsking(b.work, p), driver.KindNotAuthorized)
	})
}
