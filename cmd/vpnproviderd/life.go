package main

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/vpnprovider/vpnproviderd/dbus"
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
// answers, where systemd wants to know. What else an idle service does now and
// then is done by the same timer: each wakes the processor.
func watchdog(ctx context.Context, manager *driver.Manager, log *slog.Logger) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	spare := memory{give: debug.FreeOSMemory}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			manager.Idle() // hangs where the manager does
			notify(log, daemon.SdNotifyWatchdog)
			spare.look()
		}
	}
}

// littleMemory is how many bytes may be allocated in a quiet time.
const littleMemory = 256 << 10

// memory is what a busy time has left: Go's runtime keeps as much as the heap
// had then, for the next one.
type memory struct {
	give func() // back to the kernel

	allocated uint64 // bytes, ever, at the last look
	quiet     bool   // there was a quiet time before the last look
}

// look gives it back, once, when it has been quiet since the last look.
func (m *memory) look() {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	now, was := sample[0].Value.Uint64(), m.quiet
	m.quiet = now-m.allocated < littleMemory
	m.allocated = now
	if m.quiet && !was {
		m.give()
	}
}

// retire calls stop without sending anybody away: systemd is told that this
// process ends, before it is asked for another, and who called before is
// answered. Where one of those needs us after all, the next process goes on as
// after a restart.
func retire(ctx context.Context, server *dbus.Server, manager *driver.Manager, stop func(), log *slog.Logger) {
	notify(log, daemon.SdNotifyStopping)
	if err := server.Release(ctx); err != nil && ctx.Err() == nil {
		log.Warn("calls may be lost", "error", err)
	}
	if manager.Idle() {
		stop()
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGUSR2) // never fails
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
