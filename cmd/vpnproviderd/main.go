// Vpnproviderd is the system service that lets unprivileged programs be VPN
// clients. It is wiring: the bus in package dbus, the domain in driver, the
// network in routing, packets in tun.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"

	"github.com/vpnprovider/vpnproviderd/dbus"
)

// version is set by the linker.
var version = "0.1.0-dev"

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2

	// exitRestart: nothing was undone, another process goes on. The unit knows
	// the number.
	exitRestart = 75
)

func main() {
	signal.Ignore(syscall.SIGHUP) // until there is something to be read again
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, done := withRestart(ctx)
	defer done()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opts, err := parse(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "vpnproviderd: %v\nTry 'vpnproviderd --help'.\n", err)
		return exitUsage
	case opts.version:
		fmt.Fprintln(stdout, "vpnproviderd", version)
		return exitOK
	}
	log := newLogger(stderr, opts.level)
	work := serve
	if opts.cleanup {
		work = cleanup
	}
	if err := work(ctx, opts, log); err != nil {
		log.Error("vpnproviderd failed", "error", err)
		return exitFailed
	}
	if errors.Is(context.Cause(ctx), errRestart) {
		return exitRestart
	}
	return exitOK
}

func cleanup(ctx context.Context, opts options, log *slog.Logger) error {
	h, err := openHost(ctx, opts, log)
	if err != nil {
		return err
	}
	err = h.network.Sweep(ctx, false)
	if err == nil && opts.unlock {
		err = h.network.Lock(ctx, false)
	}
	return errors.Join(err, h.close())
}

func serve(ctx context.Context, opts options, log *slog.Logger) (err error) {
	given := takePassed()
	defer given.close()
	sockets := passedSockets(given, opts.runtimeDir, log)
	kept, err := openState(given, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kept.close()) }()
	limit, err := readLimits(opts.configDir)
	if err != nil {
		return err
	}
	server, err := dbus.Dial(ctx, dbus.Options{
		Address: opts.bus, Version: version, Polkit: opts.authorization == "polkit", Rate: opts.rate,
		Kept: kept.lastPeers, Keep: kept.peers.Write,
		PacketSockets: sockets.places(), Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	h, err := openHost(ctx, opts, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	defer func() { err = errors.Join(err, sockets.close()) }()
	if err := sockets.listen(); err != nil {
		return err
	}
	manager, err := newManager(h, server, kept, limit, opts, log)
	if err != nil {
		return err
	}
	if err := kept.resume(ctx, manager, server.Alive); err != nil {
		return err
	}
	// Before the bus is left: providers are told of what is undone.
	defer leave(ctx, server, manager)
	files := newFiles(opts.configDir, manager, log)
	files.read(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watching.Go(func() { newKeeper(h, manager, log).keep(ctx) })
	watching.Go(func() { followSleep(ctx, opts.bus, manager, log) })
	watching.Go(func() { files.follow(ctx) })
	watching.Go(func() { sockets.serve(ctx, manager, log) })
	go watchdog(ctx, manager, log)
	exit := func() { retire(ctx, server, manager, stop, log) }
	go exitWhenIdle(ctx, opts.idleExit, exit, func() bool { return server.Idle() && manager.Idle() })
	notify(log, daemon.SdNotifyReady)
	defer notify(log, daemon.SdNotifyStopping)
	return server.Serve(ctx, manager)
}
