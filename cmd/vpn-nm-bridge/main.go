// Command vpn-nm-bridge shows the configs of vpnproviderd in NetworkManager,
// and so in the network menu of every desktop: as VPN connections that can be
// switched on and off there. It never has NetworkManager touch the network.
//
// It is two programs. In each user's session one keeps that user's profiles
// and speaks for them (package menu), with the rights of the user. And for each
// connection NetworkManager starts one as its VPN plugin (package plugin),
// which gives up root before it does anything and has no rights at all.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
)

const program = "vpn-nm-bridge"

// version is set by the linker.
var version = "0.1.0-dev"

// options are the command line.
type options struct {
	bus     string
	busName string
	cleanup bool
	level   slog.Level
}

const usage = `Usage: vpn-nm-bridge [options]

Shows the VPN configs of vpnproviderd in NetworkManager, and so in the network
menu of the desktop, until it is ended. It is started by systemd in each user's
session, and by NetworkManager, seldom by hand. See vpn-nm-bridge(8).

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the program whatever it does.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	opts, line := commandLine()
	if code, done := line.Parse(args, stdout, stderr); done {
		return code
	}
	log := newLogger(stderr, opts.level)
	work := bridge
	switch {
	case opts.busName != "":
		work = serve
	case opts.cleanup:
		work = cleanup
	}
	if err := work(ctx, *opts, log); err != nil {
		log.Error(program+" failed", "error", err)
		return ui.ExitFailed
	}
	return ui.ExitOK
}

// commandLine fills the options when it is parsed.
func commandLine() (*options, ui.Options) {
	o := &options{}
	f := pflag.NewFlagSet(program, pflag.ContinueOnError)
	f.StringVar(&o.bus, "bus", "", "D-Bus `ADDRESS` instead of the system bus")
	f.StringVar(&o.busName, "bus-name", "", "be the VPN plugin of one connection, with this `NAME`; NetworkManager says so")
	f.BoolVar(&o.cleanup, "cleanup", false, "take the user's profiles out of NetworkManager, and exit")
	level := f.String("log-level", "info", "debug, info, warn or error")
	return o, ui.Options{FlagSet: f, About: usage, Version: version, Check: func() error {
		if err := o.level.UnmarshalText([]byte(*level)); err != nil {
			return fmt.Errorf("--log-level %q is not debug, info, warn or error", *level)
		}
		if o.cleanup && o.busName != "" {
			return errors.New("--cleanup is not for a plugin")
		}
		return nil
	}}
}

// newLogger writes text. The journal has times of its own.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(w, o))
}
