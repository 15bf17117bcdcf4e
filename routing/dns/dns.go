// Package dns chooses what makes the host's DNS: systemd-resolved, openresolv's
// or Debian's resolvconf, or the file resolv.conf. It goes by what the host's
// programs really use, not by what is installed.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/resolvconf"
	"github.com/vpnprovider/vpnproviderd/routing/resolved"
)

// Backend is what makes the DNS.
type Backend string

// The backends. Auto is the choice among the next three.
const (
	Auto       Backend = "auto"
	Resolved   Backend = "resolved"   // systemd-resolved
	Resolvconf Backend = "resolvconf" // the program resolvconf
	File       Backend = "file"       // resolv.conf itself
	None       Backend = "none"       // the administrator
)

// all are those that something can be set in.
func all() []Backend { return []Backend{Resolved, Resolvconf, File, None} }

// Options of a Resolver.
type Options struct {
	// Backend is Auto or a fixed one.
	Backend Backend

	// Bus is the address of the bus; empty: the system bus.
	Bus string

	// ResolvConf is the file that programs read.
	ResolvConf string

	// StateDir keeps a backup of ResolvConf. It must outlive the process.
	StateDir string

	// Links finds the links that carry our mark.
	Links func(context.Context) ([]int, error)

	// Log is required.
	Log *slog.Logger
}

// Resolver is a routing.Resolver that hands on to the backend of its choice. It
// chooses anew where nothing is set, and when a systemd-resolved comes or goes;
// what was set elsewhere is then taken back first. What an earlier process left
// is taken back whatever it had chosen. Methods may be called concurrently.
type Resolver struct {
	log      *slog.Logger
	backends map[Backend]backend
	choice   func(context.Context) Backend
	watched  bool // something depends on systemd-resolved
	watch    func(ctx context.Context, changed func(running bool)) error
	close    func() error

	work  sync.Mutex // one at a time of Set, Revert and Leftover
	marks map[Backend]mark

	mu     sync.Mutex
	chosen Backend
	set    routing.DNS // what is ours in the host's
}

// backend is one of those to choose from.
type backend interface {
	routing.Resolver

	// Original gives the servers and search domains that the host has without
	// the tunnel's.
	Original() (servers []netip.Addr, domains []string, err error)
}

// mark is what is known of a backend.
type mark int

const (
	unknown mark = iota // an earlier process may have left something
	clean
	dirty // this process has set something
)

// New returns a Resolver that has chosen. Close it when it is not needed any
// more.
func New(ctx context.Context, opts Options) (*Resolver, error) {
	return newResolver(ctx, opts, "/etc/nsswitch.conf")
}

func newResolver(ctx context.Context, opts Options, nsswitch string) (*Resolver, error) {
	r := &Resolver{log: opts.Log, marks: map[Backend]mark{}, watched: opts.Backend == Auto || opts.Backend == Resolved}
	client := resolved.New(resolved.Options{Address: opts.Bus, Links: opts.Links, Log: opts.Log})
	file := resolvconf.New(opts.ResolvConf, opts.StateDir, opts.Log)
	program := resolvconf.NewProgram(opts.ResolvConf, opts.Log)
	r.backends = map[Backend]backend{
		Resolved: uplinks{client, r}, Resolvconf: program, File: file, None: none{file: file},
	}
	r.watch, r.close = client.Watch, client.Close
	switch opts.Backend {
	case Auto:
		h := host{resolvConf: opts.ResolvConf, nsswitch: nsswitch, file: file, program: program, resolved: client, log: opts.Log}
		r.choice = func(ctx context.Context) Backend {
			f, err := h.facts(ctx)
			if before := r.current(); err != nil && before != "" {
				r.log.Warn("cannot look for what makes the host's DNS", "error", err)
				return before
			}
			return choose(f)
		}
	case Resolved, Resolvconf, File, None:
		r.choice = func(context.Context) Backend { return opts.Backend }
	default:
		return nil, fmt.Errorf("%q makes no DNS", opts.Backend)
	}
	r.choose(ctx)
	return r, nil
}

// choose makes the choice anew.
func (r *Resolver) choose(ctx context.Context) Backend {
	chosen := r.choice(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if chosen != r.chosen {
		r.log.Info("chose what makes the host's DNS", "resolver", chosen)
		r.chosen = chosen
	}
	return chosen
}

func (r *Resolver) current() Backend {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.chosen
}

// PerLink implements routing.Resolver.
func (r *Resolver) PerLink() bool { return r.backends[r.current()].PerLink() }

// Asker implements routing.Resolver.
func (r *Resolver) Asker(ctx context.Context) (uint32, error) {
	return r.backends[r.current()].Asker(ctx)
}

// Set implements routing.Resolver. A backend that does not answer in time is a
// context.DeadlineExceeded.
func (r *Resolver) Set(ctx context.Context, want routing.Resolution) error {
	r.work.Lock()
	defer r.work.Unlock()
	chosen := r.current()
	if !r.isSet() {
		chosen = r.choose(ctx)
	}
	for _, other := range all() {
		if other == chosen {
			continue
		}
		if err := r.revert(ctx, other); err != nil {
			return err
		}
	}
	r.marks[chosen] = dirty
	r.note(want.DNS)
	return r.backends[chosen].Set(ctx, want)
}

// isSet says whether something is set, by this process. r.work is held.
func (r *Resolver) isSet() bool {
	return slices.ContainsFunc(all(), func(b Backend) bool { return r.marks[b] == dirty })
}

// Revert implements routing.Resolver.
func (r *Resolver) Revert(ctx context.Context) error {
	r.work.Lock()
	defer r.work.Unlock()
	var failed []error
	for _, b := range all() {
		failed = append(failed, r.revert(ctx, b))
	}
	r.note(routing.DNS{})
	// For PerLink: what was ours may have hidden who makes the DNS.
	r.choose(ctx)
	return errors.Join(failed...)
}

// revert takes back what is ours in a backend. r.work is held.
func (r *Resolver) revert(ctx context.Context, b Backend) error {
	if r.marks[b] == clean {
		return nil
	}
	if err := r.backends[b].Revert(ctx); err != nil {
		return r.failed(b, err)
	}
	r.marks[b] = clean
	// It may have put off what it could not do at once.
	if left, err := r.backends[b].Leftover(ctx); left || err != nil {
		r.marks[b] = dirty
	}
	return nil
}

// failed passes on the error of a backend that is in use. What an earlier
// process may have left elsewhere must not keep this one from its work; where
// there was no time to look, it is looked for again.
func (r *Resolver) failed(b Backend, err error) error {
	if r.marks[b] == dirty || b == r.current() {
		return err
	}
	r.log.Error("cannot take back what an earlier run made of the DNS", "resolver", b, "error", err)
	if !errors.Is(err, context.DeadlineExceeded) {
		r.marks[b] = clean
	}
	return nil
}

// Leftover implements routing.Resolver.
func (r *Resolver) Leftover(ctx context.Context) (bool, error) {
	r.work.Lock()
	defer r.work.Unlock()
	found := false
	for _, b := range all() {
		if r.marks[b] == clean {
			continue
		}
		left, err := r.backends[b].Leftover(ctx)
		switch {
		case err != nil:
			if err = r.failed(b, err); err != nil {
				return false, err
			}
		case left:
			found = true
		default:
			r.marks[b] = clean
		}
	}
	return found, nil
}

// Watch calls changed when what is set has to be set again: another process
// has become systemd-resolved, or another backend is to be used. It may call it
// when nothing is set, and always calls it from the same goroutine. It blocks
// until ctx ends, and then returns nil; it returns an error when the bus is
// lost.
func (r *Resolver) Watch(ctx context.Context, changed func()) error {
	if !r.watched {
		<-ctx.Done()
		return nil
	}
	return r.watch(ctx, func(running bool) {
		before := r.current()
		chosen := r.choose(ctx)
		if chosen != before || running && chosen == Resolved {
			changed()
		}
	})
}

// Original gives the servers and search domains that the host has without the
// tunnel's.
func (r *Resolver) Original() (servers []netip.Addr, domains []string, err error) {
	return r.backends[r.current()].Original()
}

// Close leaves the bus and ends Watch. What is set stays.
func (r *Resolver) Close() error { return r.close() }

// note remembers what is ours.
func (r *Resolver) note(set routing.DNS) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set = set
}

// uplinks is systemd-resolved.
type uplinks struct {
	*resolved.Resolver
	r *Resolver
}

// Original reads the list that resolved keeps of all links' servers, and leaves
// ours out. The bus is not asked: it could make us wait.
func (u uplinks) Original() (servers []netip.Addr, domains []string, err error) {
	servers, domains, err = resolvconf.Read(resolved.UplinkFile)
	u.r.mu.Lock()
	defer u.r.mu.Unlock()
	servers = slices.DeleteFunc(servers, func(a netip.Addr) bool { return slices.Contains(u.r.set.Servers, a) })
	domains = slices.DeleteFunc(domains, func(d string) bool { return slices.Contains(u.r.set.Search, d) })
	return servers, domains, err
}

// none leaves the DNS alone.
type none struct {
	resolvconf.None
	file *resolvconf.File
}

func (n none) Original() (servers []netip.Addr, domains []string, err error) {
	return n.file.Original()
}
