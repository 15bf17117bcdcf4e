package main

import (
	"context"
	"log/slog"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/drivertest"
)

// TestLateHangup: a reload that comes while the daemon ends does not kill it.
func TestLateHangup(t *testing.T) {
	signal.Ignore(syscall.SIGHUP) // as main does
	defer signal.Reset(syscall.SIGHUP)
	manager, err := driver.NewManager(drivertest.New().Options())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	newFiles(t.TempDir(), manager, slog.New(slog.DiscardHandler)).follow(ctx)
	if !signal.Ignored(syscall.SIGHUP) {
		t.Error("a hangup would kill")
	}
}
