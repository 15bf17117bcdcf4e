package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vpnprovider/vpnproviderd/cmd/vpnproviderd/internal/fdstore"
	"github.com/vpnprovider/vpnproviderd/dbus"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/store"
)

// state is what goes on in the next process: descriptors, and what the manager
// and the bus keep.
type state struct {
	store          *fdstore.Store
	manager, peers *fdstore.Page

	// What an earlier process has left.
	lastManager, lastPeers []byte
}

// openState takes over what an earlier process has left among what systemd
// passed.
func openState(given passed, log *slog.Logger) (*state, error) {
	s := &state{store: fdstore.Open(given, log)}
	var err error
	if s.manager, s.lastManager, err = s.store.Page("manager"); err != nil {
		return nil, err
	}
	if s.peers, s.lastPeers, err = s.store.Page("peers"); err != nil {
		return nil, errors.Join(err, s.manager.Close())
	}
	return s, nil
}

func (s *state) close() error { return errors.Join(s.manager.Close(), s.peers.Close()) }

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
		Network: h.network, Host: h, Opener: opener{kept.store, h.kernel, &h.opening, log}, Store: configs, Consents: consents, Observer: server, Packets: server, Log: log,
		NextSession: counter(filepath.Join(opts.runtimeDir, "session")).next, Keep: kept.manager.Write,
		ConnectTimeout: opts.connectTimeout, ConfigsPerUser: limit.ConfigsPerUser, Configs: limit.Configs,
	})
}

// resume has the manager go on where an earlier process was, and removes what is
// left besides.
func (s *state) resume(ctx context.Context, manager *driver.Manager, alive func(conn string) bool) error {
	// Whoever stops us now finds the session, or nothing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err := manager.Resume(ctx, s.lastManager, alive)
	s.store.Discard()
	return err
}

// errRestart ends the process with everything in place, for the next one.
var errRestart = errors.New("restarting")

// withRestart ends ctx with errRestart when the process is told that another
// takes its place.
func withRestart(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGUSR2)
	go func() {
		select {
		case <-told:
			cancel(errRestart)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(told)
		cancel(nil)
	}
}

// leave ends what the manager does, or leaves it to the next process where ctx
// was ended for that.
func leave(ctx context.Context, server *dbus.Server, manager *driver.Manager) {
	if errors.Is(context.Cause(ctx), errRestart) {
		server.Leave(manager.Leave)
		return
	}
	manager.Shutdown()
}
