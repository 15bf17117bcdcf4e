// Command vpn-openconnect is openconnect without root: it runs the
// distribution's own openconnect as its child and gives it the tunnel of
// vpnproviderd instead of a TUN device.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/cmdline"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/openconnect"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/vpnenv"
)

// version is set by the linker.
var version = "0.1.0-dev"

const program = "vpn-openconnect"

// exitFailure says that not openconnect failed but this program: no exit code
// of openconnect's.
const exitFailure = 125

const usage = `Usage: vpn-openconnect [options] SERVER
       vpn-openconnect --config-name NAME

Connects to a VPN with openconnect, without root: vpnproviderd makes the
tunnel. Everything but the options below goes to openconnect as it is.

      --config-name NAME   name of the connection, SERVER by default; without
                           SERVER, connect again as the last time
      --bus ADDRESS        D-Bus address of the bus that vpnproviderd is on
      --openconnect PATH   the openconnect to run
      --version            version of vpn-openconnect
  -h, --help               this text

For openconnect's own options see 'openconnect --help' or openconnect(8). Of
these, --script, --script-tun, --interface, --background, --pid-file, --setuid,
--authenticate and --cookieonly have no place here.
The exit code is openconnect's, or 125 where vpn-openconnect itself fails.
`

// asScript, as the only argument before a number, makes this program the
// script that openconnect starts.
const asScript = "--as-script-of-vpn-openconnect"

func main() {
	args := os.Args[1:]
	if len(args) == 2 && args[0] == asScript {
		os.Exit(script(args[1]))
	}
	os.Exit(run(args))
}

func script(number string) int {
	fd, err := strconv.Atoi(number)
	if err == nil {
		err = openconnect.Script(fd, os.Environ(), vpnenv.Wanted)
	}
	if err != nil {
		say(os.Stderr, "%v", err)
		return exitFailure
	}
	return 0
}

func run(args []string) int {
	cmd, err := cmdline.Parse(args, os.ReadFile)
	switch {
	case err != nil:
		say(os.Stderr, "%v", err)
		return exitFailure
	case cmd.Help:
		fmt.Fprint(os.Stdout, usage)
		return 0
	case cmd.Version:
		fmt.Fprintln(os.Stdout, program, version)
		return 0
	case cmd.Server == "" && cmd.ConfigName == "":
		say(os.Stderr, "which server? Try --help")
		return exitFailure
	}
	return session(cmd)
}

// say writes one message of ours between those of openconnect.
func say(w io.Writer, format string, args ...any) {
	fmt.Fprintln(w, ui.CleanLines(fmt.Sprintf(program+": "+format, args...)))
}
