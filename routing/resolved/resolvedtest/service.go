// Package resolvedtest has a systemd-resolved for tests: it answers on a bus
// as the real one does, resolves nothing, and fails, hangs and restarts when it
// is told to.
package resolvedtest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// Names on the bus.
const (
	Name    = "org.freedesktop.resolve1"
	path    = "/org/freedesktop/resolve1"
	manager = Name + ".Manager"
)

// Link is what the service was told of one.
type Link struct {
	Servers         []netip.Addr
	Domains         []string // ~name is one for routing only
	DefaultRoute    bool
	LLMNR, Mdns     string
	UsedOldSetDNS   bool // SetLinkDNS instead of SetLinkDNSEx
	defaultRouteSet bool
}

// Service is one on a bus. Its methods may be called from several goroutines.
type Service struct {
	address string

	mu      sync.Mutex
	conn    *godbus.Conn
	links   map[int32]*Link
	missing map[int32]bool
	gone    map[string]bool   // methods that it does not have
	fails   map[string]string // the errors of methods
	hung    bool
	waiting []chan struct{} // calls, in their order, while it hangs
	calls   []string
}

// Start has the service run on the bus until the test ends.
func Start(t testing.TB, address string) *Service {
	t.Helper()
	s := &Service{address: address, links: map[int32]*Link{}, missing: map[int32]bool{}, gone: map[string]bool{}, fails: map[string]string{}}
	s.Restart(t)
	t.Cleanup(func() {
		s.GoOn()
		s.Stop()
	})
	return s
}

// Stop leaves the bus. What the service was told stays known to Links.
func (s *Service) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

// Restart comes back, after Stop or without it, and knows nothing any more.
func (s *Service) Restart(t testing.TB) {
	t.Helper()
	s.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.links)
	conn, err := godbus.Connect(s.address)
	if err != nil {
		t.Fatalf("cannot connect to the bus: %v", err)
	}
	s.conn = conn
	s.export(t)
	// The bus may not have noticed yet that the one before has left.
	flags := godbus.NameFlagDoNotQueue | godbus.NameFlagAllowReplacement | godbus.NameFlagReplaceExisting
	if reply, err := conn.RequestName(Name, flags); err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("cannot be %s: %v, %v", Name, reply, err)
	}
}

// Lose takes methods away, as in older versions.
func (s *Service) Lose(t testing.TB, methods ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range methods {
		s.gone[m] = true
	}
	s.export(t)
}

// Fail has a method answer with the error of that name; "" ends that. What it
// was told is not done.
func (s *Service) Fail(method, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails[method] = name
}

// Hang has it answer nothing until GoOn.
func (s *Service) Hang() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hung = true
}

// GoOn ends Hang: it then does what it was told in the meantime.
func (s *Service) GoOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hung = false
	s.nextCall()
}

// Miss says whether it does not know of the link; it knows all others.
func (s *Service) Miss(link int, missing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missing[int32(link)] = missing
}

// Links are those with settings.
func (s *Service) Links() map[int]Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	links := map[int]Link{}
	for index, l := range s.links {
		links[int(index)] = *l
	}
	return links
}

// Calls are the names of the methods that were called, in order.
func (s *Service) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Await waits until the link has the settings that check accepts.
func (s *Service) Await(t testing.TB, link int, what string, check func(l Link, set bool) bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		l, set := s.Links()[link]
		if check(l, set) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not in time; link %d has %+v", what, link, l)
		}
	}
}

type server struct {
	Family  int32
	Address []byte
}

type serverEx struct {
	Family  int32
	Address []byte
	Port    uint16
	Name    string
}

type domain struct {
	Name      string
	RouteOnly bool
}

// export offers the methods that it has. s.mu is held.
func (s *Service) export(t testing.TB) {
	t.Helper()
	all := map[string]any{
		"SetLinkDNS": func(link int32, list []server) *godbus.Error {
			return s.do("SetLinkDNS", link, func(l *Link) {
				l.Servers, l.UsedOldSetDNS = nil, true
				for _, e := range list {
					l.Servers = append(l.Servers, address(e.Family, e.Address))
				}
			})
		},
		"SetLinkDNSEx": func(link int32, list []serverEx) *godbus.Error {
			return s.do("SetLinkDNSEx", link, func(l *Link) {
				l.Servers = nil
				for _, e := range list {
					l.Servers = append(l.Servers, address(e.Family, e.Address))
				}
			})
		},
		"SetLinkDomains": func(link int32, list []domain) *godbus.Error {
			return s.do("SetLinkDomains", link, func(l *Link) {
				l.Domains = nil
				for _, e := range list {
					if e.RouteOnly {
						e.Name = "~" + e.Name
					}
					l.Domains = append(l.Domains, e.Name)
				}
			})
		},
		"SetLinkDefaultRoute": func(link int32, yes bool) *godbus.Error {
			return s.do("SetLinkDefaultRoute", link, func(l *Link) { l.DefaultRoute, l.defaultRouteSet = yes, true })
		},
		"SetLinkLLMNR": func(link int32, mode string) *godbus.Error {
			return s.do("SetLinkLLMNR", link, func(l *Link) { l.LLMNR = mode })
		},
		"SetLinkMulticastDNS": func(link int32, mode string) *godbus.Error {
			return s.do("SetLinkMulticastDNS", link, func(l *Link) { l.Mdns = mode })
		},
		"RevertLink": func(link int32) *godbus.Error {
			return s.do("RevertLink", link, nil)
		},
	}
	maps.DeleteFunc(all, func(method string, _ any) bool { return s.gone[method] })
	if err := s.conn.ExportMethodTable(all, path, manager); err != nil {
		t.Fatal(err)
	}
}

// do carries out one call; nil reverts the link.
func (s *Service) do(method string, link int32, change func(*Link)) *godbus.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, method)
	if s.hung || len(s.waiting) > 0 {
		turn := make(chan struct{})
		s.waiting = append(s.waiting, turn)
		s.mu.Unlock()
		<-turn
		s.mu.Lock()
	}
	defer s.nextCall()
	if name := s.fails[method]; name != "" {
		return godbus.NewError(name, []any{"as the test wants it"})
	}
	if s.missing[link] {
		return godbus.NewError(Name+".NoSuchLink", []any{fmt.Sprintf("Link %d not known", link)})
	}
	if change == nil {
		delete(s.links, link)
		return nil
	}
	if s.links[link] == nil {
		s.links[link] = &Link{}
	}
	change(s.links[link])
	return nil
}

// nextCall lets the first of the waiting calls go on. s.mu is held.
func (s *Service) nextCall() {
	if !s.hung && len(s.waiting) > 0 {
		close(s.waiting[0])
		s.waiting = s.waiting[1:]
	}
}

func address(family int32, b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	if !ok || (family == 2) != a.Is4() || (family == 10) != a.Is6() {
		return netip.Addr{}
	}
	return a
}

// Forge sends a NameOwnerChanged of the service that is not the bus's, to
// everybody and to one connection, by its unique name.
func Forge(t testing.TB, busAddress string, names []string) {
	t.Helper()
	conn, err := godbus.Connect(busAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, destination := range append(names, "") {
		m := &godbus.Message{Type: godbus.TypeSignal, Body: []any{Name, "", ":1.9999"}, Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldPath:      godbus.MakeVariant(godbus.ObjectPath("/org/freedesktop/DBus")),
			godbus.FieldInterface: godbus.MakeVariant("org.freedesktop.DBus"),
			godbus.FieldMember:    godbus.MakeVariant("NameOwnerChanged"),
			godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf("", "", "")),
		}}
		if destination != "" {
			m.Headers[godbus.FieldDestination] = godbus.MakeVariant(destination)
		}
		if call := conn.Send(m, nil); call.Err != nil {
			t.Fatal(call.Err)
		}
	}
	// The bus has passed them on when it answers.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := conn.BusObject().CallWithContext(ctx, busName+".GetId", 0).Err; err != nil {
		t.Fatal(err)
	}
}

const busName = "org.freedesktop.DBus"
