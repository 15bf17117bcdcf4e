package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/renameio/v2"

	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/params"
	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/dns"
	"github.com/vpnprovider/vpnproviderd/routing/nft"
	"github.com/vpnprovider/vpnproviderd/routing/rtnl"
)

// host is the network of the host, and what an earlier run left of ours.
type host struct {
	kernel   *rtnl.Kernel
	firewall *nft.Firewall
	dns      *dns.Resolver
	network  *routing.Network
	lock     *os.File

	// opening is held while a TUN is made, and while the network is looked at:
	// a TUN in the making carries our mark, and would be removed as a leftover.
	opening sync.Mutex
}

// openHost makes the folders and makes sure that no other daemon is at work on
// them. It changes nothing else.
func openHost(ctx context.Context, opts options, log *slog.Logger) (*host, error) {
	// Everybody finds the packet sockets in the runtime folder.
	if err := errors.Join(makeFolder(opts.stateDir, 0o700), makeFolder(opts.runtimeDir, 0o755)); err != nil {
		return nil, fmt.Errorf("cannot make a folder: %w", err)
	}
	lock, err := lockFile(filepath.Join(opts.runtimeDir, "lock"))
	if err != nil {
		return nil, err
	}
	kernel, err := rtnl.NewKernel()
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	firewall, err := nft.New()
	if err != nil {
		kernel.Close()
		return nil, errors.Join(err, lock.Close())
	}
	h := &host{kernel: kernel, firewall: firewall, lock: lock}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if h.dns, err = dns.New(ctx, dns.Options{
		Backend: dns.Backend(opts.resolver), Bus: opts.bus, ResolvConf: opts.resolvConf, StateDir: opts.stateDir,
		Links: func(ctx context.Context) ([]int, error) {
			found, err := kernel.List(ctx)
			return slices.Collect(maps.Keys(found.Links)), err
		},
		Log: log,
	}); err != nil {
		return nil, errors.Join(err, h.close())
	}
	h.network = routing.New(kernel, firewall, h.dns, log)
	return h, nil
}

// makeFolder makes a folder with the mode, whatever the umask. One that is there
// stays as it is.
func makeFolder(path string, mode os.FileMode) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func (h *host) close() error {
	var err error
	if h.dns != nil {
		err = h.dns.Close()
	}
	h.kernel.Close()
	return errors.Join(err, h.firewall.Close(), h.lock.Close())
}

// Facts is driver.Host.
func (h *host) Facts(ctx context.Context, except int) (params.Host, error) {
	found, err := h.kernel.Host(ctx, except)
	if err != nil {
		return params.Host{}, err
	}
	servers, _, err := h.dns.Original()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return params.Host{}, err
	}
	return params.Host{Addresses: found.Addresses, Gateways: found.Gateways, Nameservers: servers, NoIPv6: found.NoIPv6}, nil
}

// Protect is driver.Host.
func (h *host) Protect(socket *os.File, bound []netip.Addr) error {
	err := rtnl.Protect(socket, bound)
	switch {
	case errors.Is(err, rtnl.ErrNotProtectable):
		return driver.Errorf(driver.KindInvalidParameter, "%v", err)
	case errors.Is(err, rtnl.ErrBoundToTunnel):
		return driver.Errorf(driver.KindWrongState, "%v", err)
	}
	return err
}

// Way is driver.Host.
func (h *host) Way(ctx context.Context, dst netip.Addr, uid uint32) (driver.Way, error) {
	w, err := h.kernel.Way(ctx, dst, uid)
	if err != nil {
		return driver.Way{}, err
	}
	return driver.Way{
		Refused: w.Refused, Held: !w.Refused && !h.network.Passes(w.Index),
		Table: w.Table, Rule: w.Rule, Block: w.Block, Interface: w.Interface, Index: w.Index,
		Gateway: w.Gateway, Source: w.Source, Planned: h.network.Decide(dst),
	}, nil
}

// Resolution is driver.Host.
func (h *host) Resolution() (r *routing.Resolution, splits bool) {
	return h.network.Resolution(), h.dns.PerLink()
}

func (h *host) uplink(ctx context.Context) (driver.Uplink, error) {
	found, err := h.kernel.Host(ctx, 0)
	if err != nil {
		return driver.Uplink{}, err
	}
	u := driver.Uplink{
		Interface: found.Uplink.Interface, Index: found.Uplink.Index, Gateway: found.Uplink.Gateway, IPv6: found.Uplink.IPv6,
	}
	if u.Up() {
		// A file that cannot be read is as good as an empty one here.
		u.Nameservers, u.Domains, _ = h.dns.Original()
	}
	return u, nil
}

// counter is the file that numbers the sessions while the machine runs.
type counter string

// next is called by one goroutine at a time.
func (c counter) next() (driver.SessionID, error) {
	last := uint64(0)
	text, err := os.ReadFile(string(c))
	if err == nil {
		last, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("cannot read the number of the last session: %w", err)
	}
	number := last + 1
	if err := renameio.WriteFile(string(c), fmt.Appendln(nil, number), 0o600); err != nil {
		return 0, fmt.Errorf("cannot keep the number of the session: %w", err)
	}
	return driver.SessionID(number), nil
}

// lockFile makes sure that one process at a time works on a runtime folder.
// The kernel lets go of the lock when the process ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another vpnproviderd is running: %s: %w", path, err), f.Close())
	}
	return f, nil
}
