package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/vpnprovider/vpnproviderd/cmd/vpnproviderd/internal/fdstore"
	"github.com/vpnprovider/vpnproviderd/dbus"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/store"
)

// state is what goes on in the next process: descriptors, and what the manager
// keeps.
type state struct {
	store   *fdstore.Store
	manager *fdstore.Page
	last    []byte // of manager, by the earlier process
}

// openState takes over what an earlier process has left among what systemd
// passed.
func openState(given passed, log *slog.Logger) (*state, error) {
	s := &state{store: fdstore.Open(given, log)}
	var err error
	s.manager, s.last, err = s.store.Page("manager")
	return s, err
}

func (s *state) close() error { return s.manager.Close() }

// newManager makes the manager of the host.
func newManager(h *host, server *dbus.Server, kept *state, limit limits, opts options, log *slog.Logger) (*driver.Manager, error) {
	configs, err := store.Open(filepath.Join(opts.stateDir, "configs"), log)
	if err != nil {
		return nil, err
	}
	consents, err := store.OpenConsents(filepath.Join(opts.stateDir, "consents"), log)
	if err != nil {
		return nil, err
	}
	return driver.NewManager(driver.Options{
		Network: h.network, Host: h, Opener: opener{kept.store, h.kernel, log}, Store: configs, Consents: consents, Observer: server, Packets: server, Log: log,
		NextSession: counter(filepath.Join(opts.runtimeDir, "session")).next, Keep: kept.manager.Write,
		ConnectTimeout: opts.connectTimeout, ConfigsPerUser: limit.ConfigsPerUser, Configs: limit.Configs,
	})
}

// resume has the manager go on where an earlier process was, and removes what is
// left besides.
func (s *state) resume(ctx context.Context, manager *driver.Manager, alive func(conn string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := manager.Resume(ctx, s.last, alive)
	s.store.Discard()
	return err
}
