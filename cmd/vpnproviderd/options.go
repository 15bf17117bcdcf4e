package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/vpnprovider/vpnproviderd/dbus"
)

// options are the command line.
type options struct {
	bus            string
	stateDir       string
	runtimeDir     string
	configDir      string
	authorization  string
	resolver       string
	resolvConf     string
	connectTimeout time.Duration
	idleExit       time.Duration
	rate           dbus.Rate
	level          slog.Level
	cleanup        bool
	unlock         bool
	version        bool
}

const usage = `Usage: vpnproviderd [options]

The service that lets unprivileged programs be VPN clients. It is started by
systemd or by the bus, seldom by hand. See vpnproviderd(8).

`

// parse reads the command line; help goes to out.
func parse(args []string, out io.Writer) (o options, err error) {
	f := pflag.NewFlagSet("vpnproviderd", pflag.ContinueOnError)
	f.SetOutput(io.Discard) // errors are told by the caller
	f.SortFlags = false
	f.StringVar(&o.bus, "bus", "", "`ADDRESS` of the bus (default: the system bus)")
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/vpnprovider", "`DIR` of what must outlive a boot")
	f.StringVar(&o.runtimeDir, "runtime-dir", "/run/vpnprovider", "`DIR` of what must outlive the process")
	f.StringVar(&o.configDir, "config-dir", "/etc/vpnprovider", "`DIR` of the administrator's files")
	f.StringVar(&o.authorization, "authorization", "polkit", "who decides: polkit, or owner (the owner of a config and root may all)")
	f.StringVar(&o.resolver, "resolver", "auto", "what makes the host's DNS: auto, resolved, resolvconf, file or none")
	f.StringVar(&o.resolvConf, "resolv-conf", "/etc/resolv.conf", "`FILE` that the resolver file writes")
	f.DurationVar(&o.connectTimeout, "connect-timeout", 5*time.Minute, "how long a provider may take to connect")
	f.DurationVar(&o.idleExit, "idle-exit", 0, "exit when nobody has needed the service for that long; 0: never")
	rate := f.String("call-rate", "20:5", "`BURST:RATE` of costly calls, a sender and second; 0: no limit")
	level := f.String("log-level", "info", "debug, info, warn or error")
	f.BoolVar(&o.cleanup, "cleanup", false, "remove all that an earlier run left but a lockdown, and exit")
	f.BoolVar(&o.unlock, "unlock", false, "with --cleanup: end a lockdown too (it comes back with the next start if a config wants it)")
	f.BoolVar(&o.version, "version", false, "print the version, and exit")
	f.Usage = func() { fmt.Fprint(out, usage, f.FlagUsages()) }
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if err := o.level.UnmarshalText([]byte(*level)); err != nil {
		return o, fmt.Errorf("--log-level %q is not debug, info, warn or error", *level)
	}
	if o.rate, err = parseRate(*rate); err != nil {
		return o, err
	}
	return o, o.check()
}

func (o options) check() error {
	switch o.authorization {
	case "polkit", "owner":
	default:
		return fmt.Errorf("--authorization %q is neither polkit nor owner", o.authorization)
	}
	switch o.resolver {
	case "auto", "resolved", "resolvconf", "file", "none":
	default:
		return fmt.Errorf("--resolver %q is not auto, resolved, resolvconf, file or none", o.resolver)
	}
	if o.unlock && !o.cleanup {
		return errors.New("--unlock goes with --cleanup; while the service runs, use vpnctl unlock")
	}
	if o.connectTimeout <= 0 {
		return fmt.Errorf("--connect-timeout %s is not positive", o.connectTimeout)
	}
	if o.idleExit < 0 {
		return fmt.Errorf("--idle-exit %s is negative", o.idleExit)
	}
	return nil
}

func parseRate(text string) (dbus.Rate, error) {
	if text == "0" {
		return dbus.Rate{}, nil
	}
	burst, perSecond, _ := strings.Cut(text, ":")
	b, err := strconv.Atoi(burst)
	r, rateErr := strconv.ParseFloat(perSecond, 64)
	if err != nil || rateErr != nil || b < 1 || !(r > 0) || math.IsInf(r, 0) {
		return dbus.Rate{}, fmt.Errorf("--call-rate %q is not BURST:RATE, as in 20:5", text)
	}
	return dbus.Rate{Burst: b, PerSecond: r}, nil
}
