package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/cmdline"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/openconnect"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/vpnenv"
)

// session is one connection, from the first call to the exit code.
func session(cmd cmdline.Command) int {
	received := make(chan os.Signal, 8)
	signal.Notify(received, signals()...)
	defer signal.Stop(received)
	// Whoever reads the output may be gone before openconnect has logged out. Not
	// ignored: openconnect would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)

	options, err := childOptions(cmd)
	if err != nil {
		say(os.Stderr, "%v", err)
		return exitFailure
	}
	service, cmd, err := connectUnlessSignalled(cmd, received)
	var by signalled
	switch {
	case errors.As(err, &by):
		return 128 + int(by)
	case err != nil:
		say(os.Stderr, "%v", err)
		return exitFailure
	}
	defer service.Close()

	options.Args = cmd.Args
	process, err := openconnect.Start(options)
	if err != nil {
		say(os.Stderr, "%v", err)
		return exitFailure // and the session with us, on Close
	}
	exempting, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		err := process.Exempt(exempting, func(f *os.File) error { return service.session.Protect(exempting, f) }, service.complain)
		if err != nil {
			service.complain(err)
		}
	}()
	s := &supervisor{process: process, session: service, quiet: cmd.Quiet, log: os.Stderr}
	if err := s.run(received); err != nil {
		say(os.Stderr, "%v", err)
		return exitFailure
	}
	return process.ExitCode()
}

// signalled is the error of being told to end before there is an openconnect
// to tell.
type signalled syscall.Signal

func (s signalled) Error() string { return syscall.Signal(s).String() }

// connectUnlessSignalled may take long: polkit can ask the user.
func connectUnlessSignalled(cmd cmdline.Command, received <-chan os.Signal) (*service, cmdline.Command, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	type result struct {
		service *service
		cmd     cmdline.Command
		err     error
	}
	results := make(chan result, 1)
	go func() {
		var r result
		r.service, r.cmd, r.err = connect(ctx, cmd)
		results <- r
	}()
	for {
		select {
		case r := <-results:
			return r.service, r.cmd, r.err
		case sig := <-received:
			number, ok := sig.(syscall.Signal)
			if !ok || number == syscall.SIGUSR1 || number == syscall.SIGUSR2 {
				continue
			}
			cancel()
			if r := <-results; r.err == nil {
				r.service.Close()
			}
			return nil, cmd, signalled(number)
		}
	}
}

// childOptions finds the programs before anything is connected.
func childOptions(cmd cmdline.Command) (openconnect.Options, error) {
	self, err := os.Executable()
	if err != nil {
		return openconnect.Options{}, fmt.Errorf("cannot find my own program: %w", err)
	}
	path, err := findOpenconnect(cmd.OpenConnect)
	return openconnect.Options{
		Program: path,
		Env:     openconnect.Env(os.Environ(), vpnenv.Owned),
		Self:    []string{self, asScript},
		Stdin:   os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Wanted: vpnenv.Wanted,
	}, err
}

// findOpenconnect also looks where distributions put it, which is not in the
// PATH of ordinary users.
func findOpenconnect(given string) (string, error) {
	candidates := []string{given}
	if given == "" {
		candidates = []string{"openconnect", "/usr/sbin/openconnect", "/usr/local/sbin/openconnect", "/sbin/openconnect"}
	}
	var first error
	for _, candidate := range candidates {
		path, err := exec.LookPath(candidate)
		if err == nil {
			return path, nil
		}
		if first == nil {
			first = err
		}
	}
	return "", fmt.Errorf("cannot find openconnect, which must be installed: %w", first)
}
