package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus"
)

func TestCommandLine(t *testing.T) {
	for _, tt := range []struct {
		args []string
		exit int
		want string // part of what is printed
	}{
		{[]string{"--version"}, exitOK, "vpnproviderd " + version},
		{[]string{"--help"}, exitOK, "--connect-timeout"},
		{[]string{"--nonsense"}, exitUsage, "nonsense"},
		{[]string{"extra"}, exitUsage, `"extra"`},
		{[]string{"--authorization", "nobody"}, exitUsage, `"nobody"`},
		{[]string{"--resolver", "magic"}, exitUsage, `"magic"`},
		{[]string{"--unlock"}, exitUsage, "vpnctl unlock"},
		{[]string{"--connect-timeout", "0"}, exitUsage, "--connect-timeout"},
		{[]string{"--connect-timeout", "soon"}, exitUsage, "soon"},
		{[]string{"--idle-exit", "-1s"}, exitUsage, "--idle-exit"},
		{[]string{"--call-rate", "20"}, exitUsage, `"20"`},
		{[]string{"--call-rate", "0:1"}, exitUsage, `"0:1"`},
		{[]string{"--call-rate", "1:NaN"}, exitUsage, `"1:NaN"`},
		{[]string{"--log-level", "loud"}, exitUsage, `"loud"`},
		{[]string{"--bus", "unix:path=/nowhere"}, exitFailed, "/nowhere"},
	} {
		var out, errs bytes.Buffer
		if exit := run(t.Context(), tt.args, &out, &errs); exit != tt.exit || !strings.Contains(out.String()+errs.String(), tt.want) {
			t.Errorf("%q: exit %d\n%s%s", tt.args, exit, &out, &errs)
		}
	}
}

func TestDefaults(t *testing.T) {
	o, err := parse(nil, nil)
	want := options{
		stateDir: "/var/lib/vpnprovider", runtimeDir: "/run/vpnprovider", configDir: "/etc/vpnprovider", authorization: "polkit",
		resolver: "auto", resolvConf: "/etc/resolv.conf", connectTimeout: 5 * time.Minute, rate: dbus.Rate{Burst: 20, PerSecond: 5},
	}
	if err != nil || o != want {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestExitWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, exit := context.WithCancel(t.Context())
		exitWhenIdle(ctx, 10*time.Second, exit, func() bool { return time.Since(start) > time.Minute })
		if took := time.Since(start); took < 70*time.Second || took > 72*time.Second {
			t.Errorf("exit after %s", took)
		}
	})
}

// TestMemory: it is given back once after each busy time.
func TestMemory(t *testing.T) {
	given := 0
	m := memory{give: func() { given++ }}
	var busy [][]byte
	for i, want := range []int{0, 1, 1, 1, 2, 2} {
		if i == 0 || i == 3 {
			for range 16 {
				busy = append(busy, make([]byte, littleMemory))
			}
		}
		if m.look(); given != want {
			t.Errorf("after %d looks it was given back %d times, want %d", i+1, given, want)
		}
	}
	runtime.KeepAlive(busy)
}

func TestCounter(t *testing.T) {
	c := counter(filepath.Join(t.TempDir(), "session"))
	for want := range 3 {
		if n, err := c.next(); err != nil || int(n) != want+1 {
			t.Errorf("%d, %v", n, err)
		}
	}
	if err := os.WriteFile(string(c), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := c.next(); err == nil {
		t.Errorf("a damaged counter gave %d", n)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := lockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockFile(path); err == nil || !strings.Contains(err.Error(), "another vpnproviderd") {
		t.Errorf("error %v", err)
	}
	first.Close()
	second, err := lockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

func TestJournalPriorities(t *testing.T) {
	h := &journalHandler{level: slog.LevelInfo}
	if h.Enabled(t.Context(), slog.LevelDebug) || !h.Enabled(t.Context(), slog.LevelWarn) {
		t.Error("the level does not count")
	}
	for level, want := range map[slog.Level]int{slog.LevelDebug: 7, slog.LevelInfo: 6, slog.LevelWarn: 4, slog.LevelError: 3} {
		if got := int(priority(level)); got != want {
			t.Errorf("%s: %d, want %d", level, got, want)
		}
	}
}
