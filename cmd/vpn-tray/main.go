// Command vpn-tray shows the VPNs of vpnproviderd in the panel of the desktop,
// connects them on a click, tells of failures, and starts their apps: it is an
// agent, as vpnctl agent is.
//
// It exits with 0 when the user quits it or when it runs already, 1 when it
// cannot run, and 2 when it was called in a wrong way.
package main

import (
	"context"
	"errors"
	"io"
	"log"
	"os"
	"os/signal"

	"github.com/spf13/pflag"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/sni"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

const program = "vpn-tray"

// version is set by the linker.
var version = "0.1.0-dev"

const usage = `Usage: vpn-tray [options]

Shows the VPNs of vpnproviderd in the panel of the desktop. It is started with
the desktop, seldom by hand. See vpn-tray(1).

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), ui.EndSignals()...)
	// A second signal ends the program whatever it does.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f := pflag.NewFlagSet(program, pflag.ContinueOnError)
	bus := f.String("bus", "", "`ADDRESS` of the bus that vpnproviderd is on (default: the system bus)")
	if code, done := (ui.Options{FlagSet: f, About: usage, Version: version}).Parse(args, stdout, stderr); done {
		return code
	}
	complaints := log.New(stderr, program+": ", 0)
	err := serve(ctx, *bus, complaints)
	switch {
	case errors.Is(err, errRunning):
		complaints.Print(err)
	case err != nil:
		complaints.Print(err)
		return ui.ExitFailed
	}
	return ui.ExitOK
}

// serve runs until ctx is done, the user quits, or the session ends.
func serve(ctx context.Context, bus string, complaints *log.Logger) error {
	session, err := joinSession()
	if err != nil {
		return err
	}
	defer session.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	context.AfterFunc(session.Context(), func() { cancel(errors.New("the session bus is gone")) })
	starter, err := client.DialStarter(ctx)
	if err != nil {
		return err
	}
	defer starter.Close()

	n := newNotifier(session, complaints)
	a := newApp(n.tell, func() { cancel(nil) }, complaints)
	clicked := func(wanted model.Action) { a.post(ctx, func() { a.click(ctx, wanted) }) }
	item, err := sni.Connect(ctx, program, "VPN", picture(a.model.View(), clicked), func() { clicked(model.Action{Verb: model.Opened}) })
	if err != nil {
		return err
	}
	go n.run(ctx)
	go a.follow(ctx, bus, starter)
	a.run(ctx, func(v model.View) {
		if err := item.Show(picture(v, clicked)); err != nil && ctx.Err() == nil {
			complaints.Print(err)
		}
	})
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
