package main

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/cmd/vpnproviderd/internal/fdstore"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/routing"
)

// TestAdoptFails: what cannot be gone on with is closed, and systemd keeps it no
// longer.
func TestAdoptFails(t *testing.T) {
	for name, files := range map[string]int{"nothing": 0, "no TUN": 1, "two": 2} {
		t.Run(name, func(t *testing.T) {
			address := filepath.Join(t.TempDir(), "notify")
			systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer systemd.Close()
			t.Setenv("NOTIFY_SOCKET", address)
			var kept []*os.File
			for range files {
				f, other, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				kept = append(kept, f)
			}
			log := slog.New(slog.DiscardHandler)
			o := opener{store: fdstore.Open(map[string][]*os.File{"kept.tun.7": kept}, log), log: log}
			if _, _, err := o.Adopt(routing.Link{Name: "vpn0", Index: 7}, nil, driver.TunnelEvents{}); err == nil {
				t.Error("adopted")
			}
			for _, f := range kept {
				if f.Close() == nil {
					t.Error("a descriptor was left open")
				}
			}
			if err := systemd.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			message := make([]byte, 1024)
			n, err := systemd.Read(message)
			if got := string(message[:n]); err != nil || got != "FDSTOREREMOVE=1\nFDNAME=kept.tun.7" {
				t.Errorf("systemd was told %q, %v", got, err)
			}
		})
	}
}
