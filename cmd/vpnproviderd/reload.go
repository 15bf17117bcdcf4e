package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/platform"
)

// reloadAgain is when what could not be done for the files is tried again.
const reloadAgain = 10 * time.Second

// files has the manager follow the administrator's files.
type files struct {
	dir     string
	manager *driver.Manager
	log     *slog.Logger
	told    []platform.Problem // that are in the log
}

func newFiles(configDir string, manager *driver.Manager, log *slog.Logger) *files {
	return &files{dir: filepath.Join(configDir, "configs.d"), manager: manager, log: log}
}

// read makes the configs what the files say now, as far as they are good. It
// says whether there is nothing left to be tried again.
func (f *files) read(ctx context.Context) bool {
	found, err := platform.ReadDir(f.dir)
	if err != nil {
		f.log.Error("the administrator's configs stay as they are", "error", err)
		return true // it is told of a change
	}
	f.complain(found.Problems)
	configs := make([]driver.FileConfig, 0, len(found.Configs))
	for _, c := range found.Configs {
		configs = append(configs, driver.FileConfig{
			File: c.File, App: c.App, Name: c.Name, Owner: c.UID, Data: c.Data, AutoConnect: c.AutoConnect, Lockdown: c.Lockdown,
		})
	}
	if err := f.manager.SetFiles(ctx, configs, found.Bad); err != nil {
		f.log.Error("the administrator's configs could not all be followed", "error", err)
		return false
	}
	f.log.Debug("the administrator's configs are read", "files", len(configs), "bad", len(found.Bad))
	return true
}

// complain logs the problems that are not in the log yet.
func (f *files) complain(problems []platform.Problem) {
	for _, p := range problems {
		if !slices.Contains(f.told, p) {
			f.log.Error("a file of the administrator's is not used as it is", "problem", p.String(), "file", p.File, "line", p.Line, "key", p.Key)
		}
	}
	f.told = problems
}

// follow reads the files again when they change and on SIGHUP, until ctx ends.
func (f *files) follow(ctx context.Context) {
	hangups, changes := make(chan os.Signal, 1), make(chan struct{}, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Ignore(syscall.SIGHUP) // one that comes late must not end us amid the undo
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() {
		err := platform.Watch(ctx, f.dir, func() {
			select {
			case changes <- struct{}{}:
			default: // one is waiting already
			}
		})
		if err != nil {
			f.log.Warn("changes of the administrator's files are not seen; reload after one", "error", err)
		}
	})
	var retry <-chan time.Time
	for {
		done := true
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			// The journal of each reload tells all that is wrong.
			f.told = nil
			notify(f.log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
			done = f.read(ctx)
			notify(f.log, daemon.SdNotifyReady)
		case <-changes:
			done = f.read(ctx)
		case <-retry:
			done = f.read(ctx)
		}
		retry = nil
		if !done {
			retry = time.After(reloadAgain)
		}
	}
}
