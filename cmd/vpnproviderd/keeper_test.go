package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/drivertest"
	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/dns"
	"github.com/vpnprovider/vpnproviderd/routing/routingtest"
	"github.com/vpnprovider/vpnproviderd/routing/rtnl"
)

// newTestKeeper is one whose problems can be looked at, and what it logs.
func newTestKeeper(t *testing.T, h *host) (_ *keeper, problems func() []string, log *bytes.Buffer) {
	t.Helper()
	manager, err := driver.NewManager(drivertest.New().Options())
	if err != nil {
		t.Fatal(err)
	}
	problems = func() (codes []string) {
		manager.View(driver.Caller{}, func(v driver.View) {
			for _, p := range v.Health() {
				codes = append(codes, p.Code)
			}
		})
		return codes
	}
	log = &bytes.Buffer{}
	return newKeeper(h, manager, slog.New(slog.NewTextHandler(log, nil))), problems, log
}

// TestHeed: what fails is tried again ever more seldom, until something changes.
func TestHeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		changes := make(chan struct{}, 1)
		var looks []int // in seconds
		start := time.Now()
		var works atomic.Bool
		go heed(ctx, changes, func(context.Context) bool {
			looks = append(looks, int(time.Since(start).Seconds()))
			return works.Load()
		})
		changes <- struct{}{}
		time.Sleep(200 * time.Second)
		changes <- struct{}{}
		time.Sleep(2 * time.Second)
		works.Store(true)
		time.Sleep(time.Hour)
		cancel()
		synctest.Wait()
		if want := []int{0, 1, 3, 7, 15, 31, 63, 123, 183, 200, 201, 203}; !slices.Equal(looks, want) {
			t.Errorf("looked at %v, want %v", looks, want)
		}
	})
}

// TestWatchAgain: a monitor that fails is a problem until it runs again.
func TestWatchAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, problems, _ := newTestKeeper(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		left := 2 // runs that fail
		go k.watch(ctx, "network", func(ctx context.Context, changed func()) error {
			if left--; left >= 0 {
				return errors.New("no descriptor")
			}
			changed()
			<-ctx.Done()
			return nil
		})
		time.Sleep(90 * time.Second)
		synctest.Wait()
		if got := problems(); !slices.Equal(got, []string{driver.ProblemBlind}) {
			t.Errorf("while changes are not seen there is %q", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := problems(); len(got) != 0 {
			t.Errorf("when they are seen again there is %q", got)
		}
		select {
		case <-k.changes:
		default:
			t.Error("what was missed is not looked at")
		}
		cancel()
		synctest.Wait()
	})
}

// firewall is one that can hang.
type firewall struct {
	*routingtest.Firewall
	hangs bool
}

func (f *firewall) Find(ctx context.Context) (*routing.Filter, error) {
	if f.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return f.Firewall.Find(ctx)
}

// TestRefreshHangs: a network that cannot be kept in time is a problem as any
// other, which is logged once; the end of the daemon is none.
func TestRefreshHangs(t *testing.T) {
	kernel, err := rtnl.NewKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	resolver, err := dns.New(t.Context(), dns.Options{
		Backend: dns.None, ResolvConf: filepath.Join(t.TempDir(), "resolv.conf"), StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer resolver.Close()
	synctest.Test(t, func(t *testing.T) {
		failures := &routingtest.Failures{}
		f := &firewall{Firewall: routingtest.NewFirewall(failures)}
		network := routing.New(routingtest.NewKernel(failures), f, routingtest.NewResolver(failures), slog.New(slog.DiscardHandler))
		if err := network.Lock(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		k, problems, log := newTestKeeper(t, &host{kernel: kernel, dns: resolver, network: network})
		f.hangs = true
		for range 3 {
			if k.refresh(t.Context()) {
				t.Error("the network is what it shall be")
			}
		}
		if got := problems(); !slices.Contains(got, driver.ProblemNetwork) {
			t.Errorf("problems %q", got)
		}
		if n := strings.Count(log.String(), "cannot follow a change"); n != 1 {
			t.Errorf("told %d times:\n%s", n, log)
		}
		f.hangs = false
		if !k.refresh(t.Context()) {
			t.Errorf("cannot go on:\n%s", log)
		}
		f.hangs = true
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		k.refresh(ctx)
		if got := problems(); slices.Contains(got, driver.ProblemNetwork) {
			t.Errorf("problems %q", got)
		}
	})
}
