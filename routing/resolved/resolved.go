// Package resolved makes the host's DNS by telling systemd-resolved, over
// D-Bus, which servers and domains belong to the tunnel's link.
//
// Settings belong to a link and go with it. resolved keeps a cache for each
// link and empties it when the link's servers change, so nothing has to be
// flushed. LLMNR and multicast DNS are switched off on the tunnel's link:
// questions for single names would otherwise be asked of everybody behind it.
// What the administrator has configured about DNSSEC and DNS over TLS holds on
// the link, too.
package resolved

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// UplinkFile is where resolved lists the servers and search domains of all
// links, in the format of resolv.conf.
const UplinkFile = "/run/systemd/resolve/resolv.conf"

const (
	// limit bounds Set and Revert, each as a whole.
	limit = 5 * time.Second

	// linkLimit is how long resolved may take to notice that a link is there.
	linkLimit = time.Second
)

// Options of a Resolver.
type Options struct {
	// Address of the bus; empty: the system bus.
	Address string

	// Links finds the links that carry our mark, whoever put it there. It is
	// asked once, for what an earlier process left. nil: there are none.
	Links func(context.Context) ([]int, error)

	// Log is required.
	Log *slog.Logger
}

// Resolver is a routing.Resolver on systemd-resolved. Methods may be called
// concurrently; Set and Revert wait for each other. It connects to the bus when
// it needs to, again after a loss. Close it when it is not needed any more.
type Resolver struct {
	bus  bus
	opts Options
	log  *slog.Logger

	// asker is the last one that the bus told; 0: it told of none.
	asker atomic.Uint32

	mu sync.Mutex

	// links are those that may have settings of ours. One that is gone leaves
	// with the next Revert.
	links map[int]bool

	// looked: links has those of an earlier process, too.
	looked bool
}

// New returns a Resolver. It does not connect yet.
func New(opts Options) *Resolver {
	return &Resolver{bus: bus{address: opts.Address}, opts: opts, log: opts.Log, links: map[int]bool{}}
}

// PerLink is true.
func (r *Resolver) PerLink() bool { return true }

// Asker is resolved's user. Its questions go out by the link whose servers they
// are for: single names are asked of everybody on the LAN (LLMNR), and a LAN that
// claims a domain gets the names in it, whatever the routes say.
//
// While the bus does not tell, it is who it was: a bus that is slow must not
// open the filter.
func (r *Resolver) Asker(ctx context.Context) (uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, linkLimit)
	defer cancel()
	user, err := r.owner(ctx)
	if err == nil {
		if user != 0 {
			r.asker.Store(user)
		}
		return user, nil
	}
	if known := r.asker.Load(); known != 0 {
		r.log.Debug("systemd-resolved is taken to be the user that it was", "user", known, "error", err)
		return known, nil
	}
	return 0, fmt.Errorf("cannot keep systemd-resolved from asking the LAN: %w", err)
}

// owner is the user that has the name of systemd-resolved; 0: nobody has it.
func (r *Resolver) owner(ctx context.Context) (user uint32, err error) {
	conn, err := r.bus.connect(ctx)
	if err != nil {
		return 0, err
	}
	err = askBus(ctx, conn, "GetConnectionUnixUser", &user, name)
	if isName(err, errNoOwner) || isName(err, errServiceUnknown) {
		return 0, nil
	}
	return user, err
}

// Set implements routing.Resolver. A resolved that does not answer in time is
// a context.DeadlineExceeded; it may still do what it was told.
func (r *Resolver) Set(ctx context.Context, want routing.Resolution) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := r.set(ctx, want); err != nil {
		return fmt.Errorf("systemd-resolved, for %s: %w", want.Link.Name, err)
	}
	return nil
}

func (r *Resolver) set(ctx context.Context, want routing.Resolution) error {
	conn, err := r.bus.connect(ctx)
	if err != nil {
		return err
	}
	s := settingsOf(want)
	link := int32(want.Link.Index)
	// Nothing may be asked of everybody, not even for an instant.
	if err := r.begin(ctx, conn, link); err != nil {
		return err
	}
	r.links[want.Link.Index] = true
	if err := call(ctx, conn, "SetLinkMulticastDNS", link, "no"); err != nil {
		return err
	}
	err = call(ctx, conn, "SetLinkDNSEx", link, s.servers)
	if isName(err, errUnknownMethod) { // before systemd 246
		err = call(ctx, conn, "SetLinkDNS", link, s.plainServers())
	}
	if err != nil {
		return err
	}
	if err := call(ctx, conn, "SetLinkDomains", link, s.domains); err != nil {
		return err
	}
	err = call(ctx, conn, "SetLinkDefaultRoute", link, s.defaultRoute)
	if isName(err, errUnknownMethod) { // before systemd 240, which goes by the domains alone
		return nil
	}
	return err
}

// begin makes the first of the settings. resolved hears of a new link from the
// kernel, at about the same time as we do: it is given time to.
func (r *Resolver) begin(ctx context.Context, conn *godbus.Conn, link int32) error {
	const pause = 20 * time.Millisecond
	var err error
	for range linkLimit / pause {
		err = call(ctx, conn, "SetLinkLLMNR", link, "no")
		if !isName(err, errNoSuchLink) {
			return err
		}
		select {
		case <-ctx.Done():
			return timedOut(ctx, err)
		case <-time.After(pause):
		}
	}
	return err
}

// Revert implements routing.Resolver. It never fails: settings that resolved
// does not take back go with the link at the latest, and the end of a tunnel
// must not wait for that. They are logged, and the next Revert tries again. A
// resolved that is stuck has been told by then, and does it when it goes on.
func (r *Resolver) Revert(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r.look(ctx)
	if len(r.links) == 0 {
		return nil
	}
	conn, err := r.bus.connect(ctx)
	if err != nil {
		r.log.Warn("cannot take back the DNS of links in systemd-resolved", "error", err)
		return nil
	}
	for _, link := range slices.Sorted(maps.Keys(r.links)) {
		err := callRunning(ctx, conn, "RevertLink", int32(link))
		switch {
		case err == nil, isName(err, errNoSuchLink):
			delete(r.links, link)
		case isAbsent(err):
			// Nothing is in effect. But resolved remembers the settings of links
			// over a restart: the next Revert tries again.
			r.log.Debug("systemd-resolved is not running: there is no DNS to be taken back", "link", link)
		default:
			r.log.Warn("cannot take back the DNS of a link in systemd-resolved", "link", link, "error", err)
		}
	}
	return nil
}

// Leftover implements routing.Resolver. A link that carries our mark counts,
// whether it has settings or not.
func (r *Resolver) Leftover(ctx context.Context) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look(ctx)
	return len(r.links) > 0, nil
}

// look finds, once, what an earlier process left. r.mu is held.
func (r *Resolver) look(ctx context.Context) {
	if r.looked || r.opts.Links == nil {
		return
	}
	links, err := r.opts.Links(ctx)
	if err != nil {
		r.log.Warn("cannot find the links of an earlier run", "error", err)
		return
	}
	for _, link := range links {
		r.links[link] = true
	}
	r.looked = true
}

// State says whether somebody owns the name of systemd-resolved, or else
// whether the bus would start it.
func (r *Resolver) State(ctx context.Context) (running, startable bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := r.bus.connect(ctx)
	if err != nil {
		return false, false, err
	}
	if err := askBus(ctx, conn, "NameHasOwner", &running, name); err != nil || running {
		return running, false, err
	}
	var names []string
	err = askBus(ctx, conn, "ListActivatableNames", &names)
	return false, slices.Contains(names, name), err
}

// Close leaves the bus and ends Watch. What is set stays. A Resolver that is
// closed cannot connect any more.
func (r *Resolver) Close() error { return r.bus.close() }

// errClosed is the answer after Close.
var errClosed = errors.New("the resolver is closed")
