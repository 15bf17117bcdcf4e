package ui

import (
	"context"
	"errors"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

const retryTime = time.Second // between two calls of Retry

// Retry repeats a call while that is all a session needs to go on: while the
// daemon is away, as in an upgrade, and while a service that it asks does not
// answer, as polkit and systemd-resolved behind it may not for 15 s. It returns
// the error of the last call, also when ctx ends. Before the first repetition it
// says what it waits for.
func Retry(ctx context.Context, say func(format string, args ...any), do func(context.Context) error) error {
	for said := false; ; said = true {
		err := do(ctx)
		if !errors.Is(err, client.ErrNotRunning) && !errors.Is(err, client.ErrTimeout) {
			return err
		}
		if !said {
			say("%v; trying again", err)
		}
		select {
		case <-time.After(retryTime):
		case <-ctx.Done():
			return err
		}
	}
}
