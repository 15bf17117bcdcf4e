package main

import (
	"errors"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
)

const (
	hintList          = "see the configs: vpnctl list"
	hintNotAuthorized = "try it in a session at this machine's screen, with sudo, or ask its administrator"
)

// usage marks an error as one of the caller's.
func usage(err error) error {
	return &ui.Error{Code: ui.ExitUsage, Err: err, Hint: "see: vpnctl --help"}
}

// failed gives errors of an action its exit code, unless they have a better
// one.
func failed(code int, err error) error {
	if _, ok := errors.AsType[*ui.Error](err); ok || err == nil {
		return err
	}
	return &ui.Error{Code: code, Err: err}
}
