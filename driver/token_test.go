package driver_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver"
)

func (b *bench) token(s driver.SessionID) string {
	b.t.Helper()
	token, err := b.CreateToken(provider, s)
	if err != nil {
		b.t.Fatal(err)
	}
	if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(token) {
		b.t.Errorf("token %q", token)
	}
	return token
}

// bring presents a token and brings a channel, whose other end it returns.
func (b *bench) bring(uid uint32, token string) (*os.File, error) {
	attach, err := b.ClaimToken(uid, token)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { r.Close() })
	return r, attach(w, driver.FormatStream)
}

// A token is good once, for the provider's user, for 30 seconds.
func TestToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		first, second := b.token(s), b.token(s)
		if first == second {
			t.Error("the same token again")
		}
		for _, uid := range []uint32{stranger.UID, root.UID} {
			_, err := b.bring(uid, first)
			kind(t, err, driver.KindNotFound)
		}
		for _, wrong := range []string{"", first[:31], first + "0", strings.ToUpper(first), strings.Repeat("0", 32)} {
			_, err := b.bring(provider.UID, wrong)
			kind(t, err, driver.KindNotFound)
		}
		if _, err := b.bring(provider.UID, first); err != nil {
			t.Fatal(err)
		}
		if b.Tunnel().Format() != driver.FormatStream {
			t.Error("it is no stream")
		}
		_, err := b.bring(provider.UID, first)
		kind(t, err, driver.KindNotFound)

		time.Sleep(30*time.Second - time.Nanosecond)
		if _, err := b.bring(provider.UID, second); err != nil {
			t.Error(err)
		}
		third := b.token(s)
		time.Sleep(30 * time.Second)
		_, err = b.bring(provider.UID, third)
		kind(t, err, driver.KindNotFound)
	})
}

// Only the provider makes tokens, and not for ever more.
func TestCreateToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		for by, want := range map[driver.Caller]driver.Kind{
			ui: driver.KindNotOwner, root: driver.KindNotOwner, stranger: driver.KindNotFound,
		} {
			token, err := b.CreateToken(by, s)
			kind(t, err, want)
			if token != "" {
				t.Errorf("the token is %q all the same", token)
			}
		}
		var last string
		for range 16 {
			last = b.token(s)
		}
		_, err := b.CreateToken(provider, s)
		kind(t, err, driver.KindLimitExceeded)
		if _, err := b.bring(provider.UID, last); err != nil {
			t.Error(err)
		}
		b.token(s)
		time.Sleep(31 * time.Second)
		for range 16 {
			b.token(s)
		}
	})
}

// A token goes with its session.
func TestTokenOfAnEndedSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		before, claimed := b.token(s), b.token(s)
		attach, err := b.ClaimToken(provider.UID, claimed)
		if err != nil {
			t.Fatal(err)
		}
		b.notify(s)
		release := b.Hold("undo")
		go b.Notify(provider, s, false)
		synctest.Wait()
		_, err = b.bring(provider.UID, before)
		kind(t, err, driver.KindNotFound)
		_, err = b.CreateToken(provider, s)
		kind(t, err, driver.KindWrongState)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		kind(t, attach(w, driver.FormatStream), driver.KindWrongState)
		if w.Close() == nil {
			t.Error("the connection is still open")
		}
		release()
		synctest.Wait()
		_, err = b.CreateToken(provider, s)
		kind(t, err, driver.KindNotFound)
		b.connect(b.work)
		_, err = b.bring(provider.UID, before)
		kind(t, err, driver.KindNotFound)
	})
}

// A channel that is brought with a token is like any other: the session ends
// without one.
func TestChannelByToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		b.setParameters(s)
		former, err := b.bring(provider.UID, b.token(s))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.bring(provider.UID, b.token(s)); err != nil {
			t.Fatal(err)
		}
		if n, err := former.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("the former channel gives %d bytes, %v", n, err)
		}
		b.Tunnel().EndChannel(nil)
		time.Sleep(4 * time.Second)
		if _, err := b.bring(provider.UID, b.token(s)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		b.state(driver.Configured, "")
		b.Tunnel().EndChannel(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		b.state(driver.Failed, driver.ReasonChannelClosed)
	})
}
