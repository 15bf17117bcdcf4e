package nft

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// Each filter takes the place of each other, and nothing of any is left; others'
// tables stay as they are.
func TestSet(t *testing.T) {
	h := enter(t)
	h.nft("add table inet other; add chain inet other c { type filter hook input priority 0 ; policy drop; }; " +
		"add table ip vpnprovider; add chain ip vpnprovider c; add rule ip vpnprovider c drop")
	others := h.nft("list", "ruleset")
	h.must(h.Set(t.Context(), nil)) // nothing to remove
	alone := map[string]string{}
	for name, f := range h.filters() {
		h.must(h.Set(t.Context(), f))
		alone[name] = h.nft("list", "ruleset")
		if !strings.HasPrefix(alone[name], others) {
			t.Errorf("%s: others' tables changed:\n%s", name, alone[name])
		}
		h.must(h.Set(t.Context(), nil))
		if left := h.nft("list", "ruleset"); left != others {
			t.Errorf("%s leaves:\n%s", name, left)
		}
	}
	for first, f := range h.filters() {
		for second, g := range h.filters() {
			h.must(h.Set(t.Context(), f))
			h.must(h.Set(t.Context(), g))
			if diff := cmp.Diff(alone[second], h.nft("list", "ruleset")); diff != "" {
				t.Errorf("%s after %s:\n%s", second, first, diff)
			}
			if found, err := h.Find(t.Context()); err != nil || found != g {
				t.Errorf("%s is found as %+v, %v", second, found, err)
			}
		}
	}
}

// What another process set is found with what it must be known for.
func TestFindOfAnother(t *testing.T) {
	h := enter(t)
	for name, f := range h.filters() {
		h.must(h.Set(t.Context(), f))
		next := h.open()
		found, err := next.Find(t.Context())
		h.must(err)
		want := &routing.Filter{Unsure: true, Lockdown: f.Lockdown, Marked: f.Marked}
		if diff := cmp.Diff(want, found); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	h.must(h.Set(t.Context(), nil))
	if found, err := h.open().Find(t.Context()); found != nil || err != nil {
		t.Errorf("nothing is found as %+v, %v", found, err)
	}
}

// Whatever another program does to our tables is noticed, and told.
func TestTouched(t *testing.T) {
	h := enter(t)
	f := h.filters()["everything"]
	calls := h.watch()
	none := func(what string) {
		t.Helper()
		select {
		case <-calls:
			t.Errorf("%s: told of a change", what)
		case <-time.After(50 * time.Millisecond): // that nothing comes
		}
	}
	h.must(h.Set(t.Context(), f))
	none("our own doing")
	h.nft("add table inet other; add set inet other s { type ipv4_addr; }; add element inet other s { 192.0.2.1 }")
	none("another's table")
	for what, want := range map[string]*routing.Filter{
		"flush ruleset": nil,
		"delete table inet vpnprovider; delete table arp vpnprovider": nil,
		"delete table inet vpnprovider":                               {Unsure: true},
		"delete table arp vpnprovider":                                {Unsure: true, Lockdown: true, Marked: f.Marked},
		"flush chain inet vpnprovider lockdown-output":                {Unsure: true, Lockdown: true, Marked: f.Marked},
		"flush table inet vpnprovider":                                {Unsure: true, Lockdown: true, Marked: f.Marked},
		"insert rule inet vpnprovider lockdown-output accept":         {Unsure: true, Lockdown: true, Marked: f.Marked},
		"add chain arp vpnprovider x":                                 {Unsure: true, Lockdown: true, Marked: f.Marked},
		"delete element inet vpnprovider src-valid-mark { up0 }":      {Unsure: true, Lockdown: true, Marked: []int{h.docker}},
	} {
		h.must(h.Set(t.Context(), f))
		h.nft(what)
		diff := "nothing was told"
		for late := time.After(30 * time.Second); diff != ""; { // it may be told in parts
			select {
			case <-calls:
				found, err := h.Find(t.Context())
				h.must(err)
				diff = cmp.Diff(want, found)
			case <-late:
				t.Fatalf("%s: %s", what, diff)
			}
		}
		h.must(h.Set(t.Context(), f))
		if found, err := h.Find(t.Context()); err != nil || found != f {
			t.Errorf("%s: afterwards %+v, %v", what, found, err)
		}
	}
}

// watch has the calls of a Monitor, but for the first.
func (h *host) watch() <-chan struct{} {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	calls, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(h.self); err != nil {
			ended <- err
			return
		}
		ended <- h.Monitor(ctx, func() { calls <- struct{}{} })
	}()
	h.t.Cleanup(func() {
		cancel()
		h.must(<-ended)
	})
	<-calls
	return calls
}

// While filters take each other's place, a packet meets the one or the other:
// what both drop is dropped, what both let through passes.
func TestSetHasNoGap(t *testing.T) {
	h := enter(t)
	plain, protected := h.flood(0), h.flood(routing.MarkProtected|7)
	a, b := h.filters()["a lockdown"], h.filters()["everything"]
	a, b = &routing.Filter{Lockdown: true, Local: a.Local}, &routing.Filter{Lockdown: true, Tunnels: b.Tunnels, Local: b.Local[1:]}
	h.must(h.Set(t.Context(), a))
	plain.reset()
	protected.reset()
	const changes = 400
	begun := time.Now()
	for range changes / 2 {
		h.must(h.Set(t.Context(), b))
		h.must(h.Set(t.Context(), a))
	}
	took := time.Since(begun)
	sent, refused := plain.reset()
	good, bad := protected.reset()
	t.Logf("%d changes, %v each; %d packets dropped, %d passed; of protected sockets %d dropped, %d passed",
		changes, (took / changes).Round(time.Microsecond), refused, sent, bad, good)
	if sent != 0 || bad != 0 || refused < changes || good < changes {
		t.Error("a packet met a third fate, or there were too few")
	}
}

// flood sends without a pause until the test ends.
type flood struct {
	mu            sync.Mutex
	sent, refused int
}

// reset says how many were sent and refused since it was called last.
func (f *flood) reset() (sent, refused int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sent, refused = f.sent, f.refused
	f.sent, f.refused = 0, 0
	return sent, refused
}

func (h *host) flood(mark int) *flood {
	h.t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	h.must(err)
	h.must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark))
	f, done := &flood{}, make(chan struct{})
	var end sync.WaitGroup
	end.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			f.mu.Lock()
			// The reset waits for the packet that is on its way.
			err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{203, 0, 113, 1}})
			if err == nil {
				f.sent++
			} else if errors.Is(err, unix.EPERM) {
				f.refused++
			}
			f.mu.Unlock()
		}
	})
	h.t.Cleanup(func() {
		close(done)
		end.Wait()
		_ = unix.Close(fd)
	})
	return f
}

// A transaction that fails leaves what was there, and disturbs no later one.
func TestSetFails(t *testing.T) {
	h := enter(t)
	good := h.filters()["a tunnel"]
	h.must(h.Set(t.Context(), good))
	before := h.nft("list", "ruleset")
	// The kernel refuses an address of no bytes.
	bad := &routing.Filter{Lockdown: true, Tunnels: []routing.TunnelEnd{{Link: h.vpn, Addresses: make([]netip.Addr, 1)}}}
	for range 3 {
		err := h.Set(t.Context(), bad)
		if err == nil {
			t.Fatal("no error")
		}
		t.Log(err)
		if diff := cmp.Diff(before, h.nft("list", "ruleset")); diff != "" {
			t.Error(diff)
		}
		if found, err := h.Find(t.Context()); err != nil || found == nil || !found.Unsure {
			t.Errorf("found %+v, %v", found, err)
		}
	}
	h.must(h.Set(t.Context(), good))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Set(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if found, err := h.Find(t.Context()); err != nil || found != good {
		t.Errorf("found %+v, %v", found, err)
	}
	h.must(h.conn.SetReadBuffer(1)) // no room for the answers
	err := h.Set(t.Context(), nil)
	t.Logf("without room for answers: %v", err)
	h.must(h.conn.SetReadBuffer(receiveBuffer))
	h.must(h.Set(t.Context(), good))
	if found, err := h.Find(t.Context()); err != nil || found != good {
		t.Errorf("found %+v, %v", found, err)
	}
	h.must(h.Close())
	if err := h.Set(t.Context(), good); err == nil {
		t.Error("a closed one sets")
	}
	if _, err := h.Find(t.Context()); err == nil {
		t.Error("a closed one finds")
	}
}

func BenchmarkSet(b *testing.B) {
	h := enter(b)
	f := h.filters()["everything"]
	other := *f
	other.Marked = slices.Clone(f.Marked)[:1]
	for b.Loop() {
		h.must(h.Set(b.Context(), f))
		h.must(h.Set(b.Context(), &other))
	}
}
