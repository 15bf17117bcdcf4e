// Command vpnctl lists, connects and watches the VPNs of vpnproviderd.
//
// It exits with 0 when all went well, and else with
//
//	1    another failure
//	2    wrong use: an unknown command, flag or value, an ambiguous name
//	3    the time given by --wait is over
//	4    connecting failed
//	5    disconnecting failed
//	7    removing failed
//	8    the daemon, or the bus, is not running
//	10   there is no such config
//	130  interrupted
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second Ctrl-C ends the program whatever it does.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
