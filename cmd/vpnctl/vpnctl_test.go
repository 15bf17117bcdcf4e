package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

const app = "com.example.Demo"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a bus with a service and a provider that does as it is told.
type bench struct {
	t        *testing.T
	address  string
	service  *clienttest.Service
	provider *client.Provider
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, address: clienttest.Bus(t)}
	b.service = clienttest.Start(t, b.address)
	return b
}

// register starts the app; serve is called for each session.
func (b *bench) register(serve func(*client.Session)) {
	b.t.Helper()
	d, err := client.Dial(b.t.Context(), client.WithAddress(b.address))
	if err != nil {
		b.t.Fatal(err)
	}
	b.provider, err = d.RegisterProvider(b.t.Context(), app, client.ProviderOptions{DisplayName: "Demo"})
	if err != nil {
		b.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for e := range b.provider.Events() {
			if started, ok := e.(client.SessionStarted); ok {
				serve(started.Session)
			}
		}
	})
	b.t.Cleanup(func() {
		_ = d.Close()
		wg.Wait()
	})
}

var parameters = client.Parameters{
	Addresses:     []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")},
	InclusionList: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
	ExclusionList: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")},
	DNSServers:    []netip.Addr{netip.MustParseAddr("10.8.0.1")},
}

// succeed brings the tunnel up.
func (b *bench) succeed(s *client.Session) {
	if _, err := s.SetParameters(b.t.Context(), parameters); err != nil {
		b.t.Error(err)
	}
	if err := s.NotifyConnected(b.t.Context()); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) fail(s *client.Session) { _ = s.NotifyFailure(b.t.Context()) }

// run runs the program and compares its exit code.
func (b *bench) run(code int, args ...string) (stdout, stderr string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	if got := run(ctx, append([]string{"--bus", b.address}, args...), &out, &errs); got != code {
		b.t.Errorf("vpnctl %s: exit code %d, want %d; stderr: %s", strings.Join(args, " "), got, code, errs.String())
	}
	return out.String(), errs.String()
}

func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in:\n%s", part, text)
		}
	}
}

func TestCreateListShowRemove(t *testing.T) {
	b := newBench(t)
	out, _ := b.run(0, "list")
	contains(t, out, "There are no configs")
	out, _ = b.run(0, "list", "--json")
	if out != "[]\n" {
		t.Errorf("list --json: %q", out)
	}
	out, _ = b.run(0, "create", app, "Work", "--data", "server=vpn.example.com", "--data", "opts=a,b=c", "--auto-connect")
	contains(t, out, "Created Work ("+id(clienttest.ConfigPath(app, "Work"))+").\n")
	b.run(0, "create", "com.example.Other", "Größe")
	_, errs := b.run(1, "create", app, "Work")
	contains(t, errs, "vpnctl: cannot create the config \"Work\"", "see: vpnctl show com.example.Demo/Work")

	out, _ = b.run(0, "list")
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != 3 {
		t.Fatalf("list:\n%s", out)
	}
	column := strings.Index(lines[0], "APP")
	for i, want := range []string{"APP", "com.example.Other", app} {
		if got := string([]rune(lines[i])[column:]); !strings.HasPrefix(got, want) {
			t.Errorf("column of APP in line %d: %q, want %q", i, got, want)
		}
	}
	contains(t, lines[2], "Work", "idle", id(clienttest.ConfigPath(app, "Work"))[:8])

	var list []client.ConfigInfo
	out, _ = b.run(0, "list", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 2 || list[1].Name != "Work" {
		t.Errorf("list --json: %v, %+v", err, list)
	}
	out, _ = b.run(0, "show", "Work")
	contains(t, out, "Name:            Work\n", "Auto-connect:    yes\n", "Data server:     vpn.example.com\n", "Data opts:       a,b=c\n")
	var p client.ConfigProperties
	out, _ = b.run(0, "show", "--json", "Work")
	if err := json.Unmarshal([]byte(out), &p); err != nil || p.App != app || p.Data["opts"] != "a,b=c" || !p.AutoConnect {
		t.Errorf("show --json: %v, %+v", err, p)
	}
	out, _ = b.run(0, "remove", "Work", "Grö")
	if out != "Removed Work.\nRemoved Größe.\n" {
		t.Errorf("remove: %q", out)
	}
	_, errs = b.run(10, "remove", "Work")
	contains(t, errs, `there is no config "Work"`, "vpnctl list")
}

func TestConnect(t *testing.T) {
	b := newBench(t)
	b.run(0, "create", app, "Work")
	_, errs := b.run(4, "connect", "Work")
	contains(t, errs, "Work: cannot connect", "start the app com.example.Demo, then: vpnctl connect Work")
	b.register(b.succeed)
	out, _ := b.run(0, "connect", "Work")
	if out != "Work: connecting\nWork: configured\nWork: connected\n" {
		t.Errorf("connect: %q", out)
	}
	if out, _ = b.run(0, "connect", "Work"); out != "Work: connected\n" {
		t.Errorf("connect again: %q", out)
	}
	out, _ = b.run(0, "status")
	contains(t, out, "Work (com.example.Demo)\n", "State:       connected\n", "Interface:   vpn0 (MTU 1500)\n",
		"Addresses:   10.8.0.2/24\n", "Included:    0.0.0.0/0\n", "Excluded:    192.0.2.7/32\n", "DNS:         10.8.0.1\n",
		"Uplink:      eth0, gateway 192.0.2.1\n", "Sent:        300 B in 3 packets\n", "Received:    200 B in 2 packets\n", "Dropped:     1 source\n",
		"info: this is not the daemon")
	var report []connection
	out, _ = b.run(0, "status", "--json", "Work")
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report) != 1 || report[0].Session.Statistics.TxBytes != 300 || report[0].Config.Name != "Work" {
		t.Errorf("status --json: %v, %s", err, out)
	}
	if out, _ = b.run(0, "disconnect"); out != "Work: disconnected\n" {
		t.Errorf("disconnect: %q", out)
	}
	if out, _ = b.run(0, "disconnect"); out != "Nothing is connected.\n" {
		t.Errorf("disconnect: %q", out)
	}
	if out, _ = b.run(0, "disconnect", "Work"); out != "Work: was not connected\n" {
		t.Errorf("disconnect: %q", out)
	}
	out, _ = b.run(0, "status")
	contains(t, out, "Nothing is connected.\n")
	out, _ = b.run(0, "status", "Work")
	contains(t, out, "State:           idle\n", "Last connected:")
}

func TestConnectFails(t *testing.T) {
	b := newBench(t)
	b.run(0, "create", app, "Work")
	b.register(b.fail)
	out, errs := b.run(4, "connect", "Work")
	contains(t, out, "Work: connecting\n")
	contains(t, errs, "Work: cannot connect: provider failure", "vpnctl show Work")
	out, _ = b.run(0, "status", "Work")
	contains(t, out, "State:           failed\n", "Reason:          provider failure\n")
	b.service.Fail("Config.Connect", wire.ErrBusy, "the tunnel is used by another user")
	_, errs = b.run(4, "connect", "Work")
	contains(t, errs, "the tunnel is used by another user", "administrator")
	b.service.Fail("Config.Connect", wire.ErrNotAuthorized, "not authorized to connect")
	_, errs = b.run(4, "connect", "Work")
	contains(t, errs, "not authorized", hintNotAuthorized)
	b.service.Fail("Config.Disconnect", wire.ErrFailed, "netlink is gone")
	_, errs = b.run(5, "disconnect", "Work")
	contains(t, errs, "Work: cannot disconnect: netlink is gone")
	b.service.Fail("Config.Remove", wire.ErrNotAuthorized, "the administrator made it")
	_, errs = b.run(7, "remove", "Work")
	contains(t, errs, "the administrator made it")
}

func TestConnectStopsWaiting(t *testing.T) {
	b := newBench(t)
	b.run(0, "create", app, "Work")
	b.register(func(*client.Session) {}) // never ready
	out, errs := b.run(3, "connect", "--wait", "3", "Work")
	contains(t, out, "Work: connecting\n")
	contains(t, errs, "Work: still connecting, and goes on: the time is over", "vpnctl disconnect Work")
	if out, _ = b.run(0, "connect", "--wait", "0", "Work"); out != "Work: connecting\n" {
		t.Errorf("connect --wait 0: %q", out)
	}

	ctx, cancel := context.WithCancel(t.Context())
	stdout := &syncBuffer{}
	code := make(chan int, 1)
	go func() { code <- run(ctx, []string{"--bus", b.address, "connect", "Work"}, stdout, stdout) }()
	stdout.await(t, "Work: connecting\n")
	cancel()
	if got := <-code; got != 130 {
		t.Errorf("interrupted: %d", got)
	}
	stdout.await(t, "interrupted")

	stdout = &syncBuffer{}
	go func() { code <- run(t.Context(), []string{"--bus", b.address, "connect", "Work"}, stdout, stdout) }()
	stdout.await(t, "Work: connecting\n")
	b.run(0, "remove", "Work")
	if got := <-code; got != 4 {
		t.Errorf("removed while waiting: %d", got)
	}
}

func TestUsage(t *testing.T) {
	b := newBench(t)
	for _, args := range [][]string{
		{"nonsense"},
		{"show"},
		{"show", "a", "b"},
		{"list", "--nonsense"},
		{"create", app},
		{"remove"},
		{"create", app, "x", "--data", "novalue"},
		{"create", app, "x", "--data", "=v"},
		{"connect", "--wait", "-1", "x"},
		{"connect", "--wait", "soon", "x"},
	} {
		_, errs := b.run(2, args...)
		about := " " + args[0]
		if args[0] == "nonsense" {
			about = "" // there is no such command
		}
		contains(t, errs, "vpnctl: ", "see: vpnctl"+about+" --help")
	}
	out, _ := b.run(0, "--version")
	contains(t, out, "vpnctl ")
	for _, name := range []string{"list", "show", "create", "connect", "disconnect", "remove", "status", "monitor"} {
		out, _ := b.run(0, name, "--help")
		contains(t, out, "Usage:\n  vpnctl "+name, "Examples:\n  vpnctl "+name)
	}
}

func TestNotRunning(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--bus", "unix:path=/nonexistent", "list"}, &out, &errs); code != 8 {
		t.Errorf("no bus: %d", code)
	}
	contains(t, errs.String(), "cannot reach the bus", "--bus")
	errs.Reset()
	if code := run(t.Context(), []string{"--bus", clienttest.Bus(t), "list"}, &out, &errs); code != 8 {
		t.Errorf("no daemon: %d", code)
	}
	contains(t, errs.String(), "vpnproviderd is not running", "systemctl start vpnproviderd")
}

func TestNames(t *testing.T) {
	all := []client.ConfigInfo{
		{Path: "/org/vpnprovider1/config/aaaaaaaa00000000", App: "com.example.A", Name: "Work"},
		{Path: "/org/vpnprovider1/config/aaaaaaaa11111111", App: "com.example.B", Name: "Work"},
		{Path: "/org/vpnprovider1/config/bbbbbbbb00000000", App: "com.example.B", Name: "Workshop"},
		{Path: "/org/vpnprovider1/config/cccccccc00000000", App: "com.example.B", Name: "bbbbbbbb"},
	}
	for name, want := range map[string]int{
		"com.example.A/Work": 0, "aaaaaaaa1": 1, "aaaaaaaa11111111": 1, "/org/vpnprovider1/config/aaaaaaaa00000000": 0,
		"Works": 2, "bbbbbbbb": 3, "c": 3, "Work": -2, "aaaa": -2, "W": -2, "": -10, "Home": -10,
	} {
		got, err := match(all, name)
		if want >= 0 {
			if err != nil || got != all[want] {
				t.Errorf("%q: %+v, %v", name, got, err)
			}
			continue
		}
		if f, ok := err.(*ui.Error); !ok || f.Code != -want {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
	if got := shortIDs(all); strings.Join(got, " ") != "aaaaaaaa0 aaaaaaaa1 bbbbbbbb0 cccccccc0" {
		t.Errorf("short ids: %v", got)
	}
}

func TestCompletion(t *testing.T) {
	b := newBench(t)
	b.run(0, "create", app, "Work")
	b.run(0, "create", app, "Home")
	for _, want := range []struct {
		args []string
		out  string
	}{
		{[]string{"connect", ""}, "Home\tcom.example.Demo, idle\nWork\tcom.example.Demo, idle\n:4\n"},
		{[]string{"show", "W"}, "Work\tcom.example.Demo, idle\n:4\n"},
		{[]string{"remove", "Work", ""}, "Home\tcom.example.Demo, idle\n:4\n"},
		{[]string{"connect", "Work", ""}, ":4\n"},
		{[]string{"list", ""}, ":4\n"},
	} {
		if out, _ := b.run(0, append([]string{"__complete"}, want.args...)...); out != want.out {
			t.Errorf("%v: %q, want %q", want.args, out, want.out)
		}
	}
	b.service.Stop()
	if out, _ := b.run(0, "__complete", "connect", ""); out != ":4\n" {
		t.Errorf("without a daemon: %q", out)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		out, _ := b.run(0, "completion", shell)
		contains(t, out, "vpnctl")
	}
}

func TestMonitor(t *testing.T) {
	b := newBench(t)
	b.run(0, "create", app, "Work")
	b.register(b.succeed)
	ctx, cancel := context.WithCancel(t.Context())
	text, lines := &syncBuffer{}, &syncBuffer{}
	codes := make(chan int, 3)
	status := &syncBuffer{}
	go func() { codes <- run(ctx, []string{"--bus", b.address, "monitor"}, text, text) }()
	go func() { codes <- run(ctx, []string{"--bus", b.address, "monitor", "--json"}, lines, lines) }()
	go func() { codes <- run(ctx, []string{"--bus", b.address, "status", "--watch"}, status, status) }()
	text.await(t, "Work: idle\n")
	lines.await(t, `"synced"`)
	status.await(t, "Nothing is connected.\n")
	b.run(0, "connect", "Work")
	text.await(t, " Work: connecting\n", " Work: addresses 10.8.0.2/24 on vpn0\n", " Work: DNS 10.8.0.1\n", " Work: connected\n")
	status.await(t, "State:       connected\n")
	b.run(0, "disconnect")
	text.await(t, " Work: disconnecting\n", "Work: idle\n")
	b.run(0, "create", app, "Home")
	text.await(t, " Home: created by com.example.Demo\n")
	b.service.Stop()
	text.await(t, " vpnproviderd stopped\n")
	status.await(t, "not running; waiting")
	b.service.Restart(b.address)
	text.await(t, " vpnproviderd is running again\n")
	b.run(0, "remove", "Home")
	text.await(t, " Home: removed\n")
	lines.await(t, `"change":"removed"`)
	cancel()
	for range 3 {
		if code := <-codes; code != 0 {
			t.Errorf("interrupted: %d", code)
		}
	}
	var connected bool
	for line := range strings.Lines(lines.String()) {
		var change struct {
			Time   time.Time
			Change string
			Config *client.ConfigProperties
		}
		if err := json.Unmarshal([]byte(line), &change); err != nil || change.Change == "" || time.Since(change.Time) > time.Minute {
			t.Errorf("%q: %v", line, err)
		}
		connected = connected || change.Config != nil && change.Config.State == client.StateConnected
	}
	if !connected {
		t.Errorf("no connected config in:\n%s", lines.String())
	}
}

func TestOutput(t *testing.T) {
	var b bytes.Buffer
	p := &printer{w: &b, colour: true}
	p.table([]string{"NAME", "STATE", "ID"}, [][]string{{"a\x1b[2Jb", "failed", "1"}, {"ü", "connected", "2"}})
	want := "NAME    STATE      ID\na\ufffd[2Jb  \x1b[31mfailed\x1b[0m     1\nü       \x1b[32mconnected\x1b[0m  2\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
	many := make([]netip.Addr, 20)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
	}
	if got := some(many); !strings.HasSuffix(got, "10.0.0.7 and 12 more") {
		t.Errorf("some: %q", got)
	}
	if newPrinter(&b).colour {
		t.Error("colour into a file")
	}
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if !newPrinter(tty).colour {
		t.Error("no colour on a terminal")
	}
	t.Setenv("NO_COLOR", "1")
	if newPrinter(tty).colour {
		t.Error("colour despite NO_COLOR")
	}
}

// syncBuffer is output that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await waits until all parts were written.
func (s *syncBuffer) await(t *testing.T, parts ...string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		missing := ""
		for _, part := range parts {
			if !strings.Contains(s.String(), part) {
				missing = part
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q not within 10 s in:\n%s", missing, s.String())
		}
	}
}
