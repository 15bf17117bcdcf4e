package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/vpnprovider/vpnproviderd/dbus/sleep"
	"github.com/vpnprovider/vpnproviderd/driver"
)

// notify tells systemd, where it wants to know.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("cannot notify systemd", "state", state, "error", err)
	}
}

// watchdog tells systemd that the service is alive for as long as the manager
// answers, where systemd wants to know.
func watchdog(ctx context.Context, manager *driver.Manager, log *slog.Logger) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			manager.Idle() // hangs where the manager does
			notify(log, daemon.SdNotifyWatchdog)
		}
	}
}

// exitWhenIdle calls exit when idle has been true for that long, looked at
// often enough to be late by a tenth. 0 is never.
func exitWhenIdle(ctx context.Context, after time.Duration, exit func(), idle func() bool) {
	if after == 0 {
		return
	}
	tick := time.NewTicker(max(after/10, time.Millisecond))
	defer tick.Stop()
	since := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			switch {
			case !idle():
				since = now
			case now.Sub(since) >= after:
				exit()
				return
			}
		}
	}
}

// followSleep tells the manager of the machine's sleep, where logind does.
func followSleep(ctx context.Context, bus string, manager *driver.Manager, log *slog.Logger) {
	events := sleep.Events{Before: manager.Sleep, After: manager.Wake}
	if err := sleep.Watch(ctx, bus, events, log); err != nil && ctx.Err() == nil {
		log.Warn("the machine's sleep is not noticed", "error", err)
	}
}
