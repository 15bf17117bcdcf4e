// Package resolvconf makes the host's DNS by writing the file resolv.conf, for
// hosts that have no service for it. None is for those whose DNS is not to be
// touched.
//
// What the file was before is kept in a backup of our own, written to disk
// before the file is replaced, so that a later process can undo it after a
// crash at any instant. A file knows no split DNS: with match domains the
// tunnel's servers are asked for all names, and a warning is logged.
package resolvconf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// usedServers is how many servers the C library asks.
const usedServers = 3

// File is a routing.Resolver that writes one file. Methods may be called
// concurrently. It holds no resources.
type File struct {
	path   string
	backup backup
	log    *slog.Logger

	mu sync.Mutex
}

// New serves the file at path and keeps its backup in the folder stateDir,
// which must outlive the process and should outlive a boot.
func New(path, stateDir string, log *slog.Logger) *File {
	return &File{path: path, backup: backupIn(stateDir), log: log}
}

// PerLink is false: the file serves the whole host.
func (f *File) PerLink() bool { return false }

// Asker is nobody: each program asks for itself, along the routes.
func (f *File) Asker(context.Context) (uint32, error) { return 0, nil }

// Set implements routing.Resolver. It writes nothing where the file is as it
// should be. What another program made of the file since counts as what it
// goes back to.
func (f *File) Set(_ context.Context, r routing.Resolution) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := read(f.path)
	if err != nil {
		return f.failed("read", err)
	}
	kept, err := f.backup.load(f.path)
	if err != nil {
		return err
	}
	before := now
	if kept != nil && kept.wrote(now) {
		before = kept.Before
	}
	content := compose(r, before.Content)
	if kept != nil && now.is(content) {
		return nil
	}
	next := &record{Path: f.path, Before: before, Written: []string{content}}
	if kept != nil && kept.wrote(now) {
		next.Written = append(next.Written, string(now.Content)) // until it is replaced
	}
	if err = f.backup.save(next); err != nil {
		return err
	}
	if err = write(f.path, before.plain(content)); err != nil {
		return errors.Join(f.failed("write", err), f.putBack(now, kept))
	}
	f.warn(r)
	return nil
}

// putBack undoes a failed write. The backup stays what it was before it only
// where the file is, too.
func (f *File) putBack(before entry, kept *record) error {
	now, err := read(f.path)
	if err == nil && !now.equal(before) {
		err = write(f.path, before)
	}
	if err != nil {
		return f.failed("restore", err)
	}
	return f.backup.restore(kept)
}

func (f *File) warn(r routing.Resolution) {
	if len(r.DNS.Match) > 0 {
		f.log.Warn("resolv.conf knows no split DNS: the tunnel's servers are asked for all names",
			"file", f.path, "domains", strings.Join(r.DNS.Match, " "))
	}
	if len(r.DNS.Servers) > usedServers {
		f.log.Warn("the C library asks only the first servers of resolv.conf",
			"file", f.path, "servers", len(r.DNS.Servers), "asked", usedServers)
	}
}

// Revert implements routing.Resolver. A file that is no longer what we wrote
// is left to whoever changed it.
func (f *File) Revert(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept, err := f.backup.load(f.path)
	if err != nil {
		return err
	}
	if kept == nil {
		if f.backup.unfinished() {
			return f.backup.drop()
		}
		return nil
	}
	now, err := read(f.path)
	if err != nil {
		return f.failed("read", err)
	}
	switch {
	case kept.wrote(now):
		if err := write(f.path, kept.Before); err != nil {
			return f.failed("restore", err)
		}
	case !now.equal(kept.Before):
		f.log.Warn("resolv.conf was changed by another program, it is left as it is", "file", f.path)
	}
	if err = os.Remove(temporary(f.path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return f.failed("clean up after", err)
	}
	return f.backup.drop()
}

// Leftover implements routing.Resolver.
func (f *File) Leftover(context.Context) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept, err := f.backup.load(f.path)
	return kept != nil || f.backup.unfinished(), err
}

// Original gives the servers and search domains that the host has without the
// tunnel's.
func (f *File) Original() (servers []netip.Addr, domains []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := read(f.path)
	if err != nil {
		return nil, nil, f.failed("read", err)
	}
	kept, err := f.backup.load(f.path)
	if err != nil {
		return nil, nil, err
	}
	if kept != nil && kept.wrote(now) {
		now = kept.Before
	}
	servers, domains = parse(now.Content)
	return servers, domains, nil
}

// failed says of an error what can be done about it.
func (f *File) failed(verb string, err error) error {
	help := ""
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, errReadOnly) {
		help = fmt.Sprintf(" (let the daemon write in the folder of %s, use systemd-resolved, or start the daemon with --resolver none)", f.path)
	}
	return fmt.Errorf("cannot %s %s: %w%s", verb, f.path, err, help)
}
