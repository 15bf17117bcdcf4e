// Command vpn-wireguard is a WireGuard client without root: wireguard-go on the
// tunnels of vpnproviderd, with the configuration files of wg-quick(8).
//
// It exits with 0 when all went well, and else with
//
//	1    another failure
//	2    wrong use: an unknown command or flag
//	3    the daemon, or a person who was asked, did not answer in time
//	4    connecting failed
//	5    disconnecting failed
//	8    the daemon, or the bus, is not running
//	10   there is no such configuration
//	130  interrupted
package main

import (
	"context"
	"os"
	"os/signal"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
)

// version is set by the linker.
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), ui.EndSignals()...)
	// A second Ctrl-C ends the program whatever it does.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
