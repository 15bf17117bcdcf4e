package resolvconf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// fakeProgram is a host with a program resolvconf that a test wrote.
type fakeProgram struct {
	*Program
	dir string
	log bytes.Buffer
}

// withProgram has a program that notes how it is called and then does what the
// script says. "" is no program.
func withProgram(t *testing.T, version, script string) *fakeProgram {
	t.Helper()
	f := &fakeProgram{dir: t.TempDir()}
	f.Program = NewProgram(filepath.Join(f.dir, "resolv.conf"), slog.New(slog.NewTextHandler(&f.log, nil)))
	f.dirs, f.records = []string{filepath.Join(f.dir, "empty"), f.dir}, filepath.Join(f.dir, "interface")
	if version != "" {
		text := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = --version ]; then %s; fi\ndir=%s\n"+
			"echo \"$*\" >>$dir/calls; env >$dir/env; cat >$dir/stdin\n%s\n", version, f.dir, script)
		if err := os.WriteFile(filepath.Join(f.dir, "resolvconf"), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.write(t, "resolv.conf", "nameserver 127.0.0.1\n")
	return f
}

func (f *fakeProgram) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (f *fakeProgram) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(f.dir, name))
	return string(text)
}

const (
	isOpenresolv = "echo openresolv 3.12.0; exit 0"
	isDebian     = "echo Debian resolvconf 1.91; exit 0"
	isOldDebian  = "exit 99"
	isSystemd    = "echo 'systemd 252 (252.39)'; exit 0"
)

func vpn() routing.Resolution {
	return routing.Resolution{
		Link: routing.Link{Name: "vpn0", Index: 7},
		DNS:  routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::53")}, Search: []string{"corp.example", "lab.example"}},
	}
}

func TestProgramCalls(t *testing.T) {
	for name, tt := range map[string]struct{ version, set, revert string }{
		"openresolv":   {isOpenresolv, "-x -m 0 -a tun.vpnproviderd\n", "-f -d tun.vpnproviderd\n"},
		"Debian":       {isDebian, "-a tun.vpnproviderd\n", "-d tun.vpnproviderd\n"},
		"older Debian": {isOldDebian, "-a tun.vpnproviderd\n", "-d tun.vpnproviderd\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SECRET", "x")
			f := withProgram(t, tt.version, "")
			if err := f.Set(t.Context(), vpn()); err != nil {
				t.Fatal(err)
			}
			if got := f.read("calls"); got != tt.set {
				t.Errorf("called with %q, want %q", got, tt.set)
			}
			for _, want := range []string{"nameserver 10.1.2.3\n", "nameserver fd00::53\n", "search corp.example lab.example\n"} {
				if got := f.read("stdin"); !strings.Contains(got, want) {
					t.Errorf("told %q, not %q", got, want)
				}
			}
			if env := f.read("env"); strings.Contains(env, "SECRET") || !strings.Contains(env, "PATH=/usr/sbin:") {
				t.Errorf("the environment is\n%s", env)
			}
			if left, err := f.Leftover(t.Context()); !left || err != nil {
				t.Errorf("left %v, %v", left, err)
			}
			f.write(t, "calls", "")
			for range 2 { // the second has nothing to do
				if err := f.Revert(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := f.read("calls"); got != tt.revert {
				t.Errorf("called with %q, want %q", got, tt.revert)
			}
			if left, err := f.Leftover(t.Context()); left || err != nil {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

func TestNoProgram(t *testing.T) {
	for name, version := range map[string]string{"none": "", "systemd's": isSystemd, "a broken one": "exit 1"} {
		t.Run(name, func(t *testing.T) {
			f := withProgram(t, version, "")
			if err := f.Check(t.Context()); err == nil {
				t.Error("there is one")
			}
			if err := f.Set(t.Context(), vpn()); err == nil || !strings.Contains(err.Error(), "resolvconf") {
				t.Errorf("Set: %v", err)
			}
			if left, err := f.Leftover(t.Context()); left || err != nil {
				t.Errorf("left %v, %v", left, err)
			}
			if err := f.Revert(t.Context()); err != nil {
				t.Errorf("Revert: %v", err)
			}
		})
	}
}

func TestProgramFails(t *testing.T) {
	f := withProgram(t, isOpenresolv, "echo 'no such luck' >&2; exit 3")
	for args, err := range map[string]error{"-a tun.vpnproviderd": f.Set(t.Context(), vpn()), "-d tun.vpnproviderd": f.Revert(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), args) || !strings.Contains(err.Error(), "no such luck") || !strings.Contains(err.Error(), "exit status 3") {
			t.Errorf("%s: %v", args, err)
		}
	}
	if left, _ := f.Leftover(t.Context()); !left {
		t.Error("a failed Revert counts as done")
	}
}

// TestProgramHangs: it is ended in time, with the programs that it started.
func TestProgramHangs(t *testing.T) {
	f := withProgram(t, isOpenresolv, "sleep 1000 & echo $! >$dir/child; wait")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.Set(ctx, vpn()) }()
	var child int
	waitUntil(t, "the program runs", func() bool {
		child, _ = strconv.Atoi(strings.TrimSpace(f.read("child")))
		return child != 0
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	waitUntil(t, "its child is gone", func() bool { return gone(child) })

	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := f.Revert(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// What an earlier process left is looked for again where the program did not
// end in time.
func TestProgramListsLate(t *testing.T) {
	f := withProgram(t, isOpenresolv, `test -e $dir/free || exec sleep 1000
[ "$1" = -l ] && echo "# resolv.conf from tun.vpnproviderd" && echo nameserver 10.1.2.3`)
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if left, err := f.Leftover(short); left || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", left, err)
	}
	f.write(t, "free", "")
	if left, err := f.Leftover(t.Context()); !left || err != nil {
		t.Errorf("%v, %v\n%s", left, err, f.log.String())
	}
}

// gone says whether there is no such process, or only what is left of it.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ") || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

// TestProgramIsNotUsed: the program does its work, and nobody reads it.
func TestProgramIsNotUsed(t *testing.T) {
	f := withProgram(t, isDebian, "")
	f.write(t, "resolv.conf", "nameserver 192.0.2.53\n")
	if err := f.Set(t.Context(), vpn()); err == nil || !strings.Contains(err.Error(), "is not made by resolvconf") {
		t.Errorf("%v", err)
	}
}

func TestProgramSplitDNS(t *testing.T) {
	f := withProgram(t, isOpenresolv, "")
	r := vpn()
	r.DNS.Match = []string{"corp.example"}
	if err := f.Set(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(f.log.String(), "split DNS") {
		t.Errorf("no warning: %s", &f.log)
	}
}

// TestProgramOriginal finds what others told the program, and what an earlier
// process did.
func TestProgramOriginal(t *testing.T) {
	lists := map[string]*fakeProgram{
		"openresolv": withProgram(t, isOpenresolv, `printf '# resolv.conf from eth0.dhcp\nnameserver 192.0.2.53\nsearch lan.example\n\n`+
			`# resolv.conf from tun.vpnproviderd\nnameserver 10.1.2.3\nsearch corp.example\n\n'`),
		"Debian": withProgram(t, isDebian, "exit 1"),
	}
	if err := os.Mkdir(lists["Debian"].records, 0o755); err != nil {
		t.Fatal(err)
	}
	lists["Debian"].write(t, "interface/eth0.dhcp", "nameserver 192.0.2.53\nsearch lan.example\n")
	lists["Debian"].write(t, "interface/tun.vpnproviderd", "nameserver 10.1.2.3\n")
	for name, f := range lists {
		t.Run(name, func(t *testing.T) {
			if left, err := f.Leftover(t.Context()); !left || err != nil {
				t.Errorf("left %v, %v", left, err)
			}
			servers, domains, err := f.Original()
			if err != nil || !slices.Equal(servers, []netip.Addr{netip.MustParseAddr("192.0.2.53")}) || !slices.Equal(domains, []string{"lan.example"}) {
				t.Errorf("%v, %v, %v", servers, domains, err)
			}
		})
	}
	none := withProgram(t, isOpenresolv, "exit 1") // as it does when nobody told it anything
	if servers, domains, err := none.Original(); len(servers)+len(domains) != 0 || err != nil {
		t.Errorf("%v, %v, %v", servers, domains, err)
	}
}

const insideVariable = "RESOLVCONF_TEST_INSIDE"

// TestProgramInside is one step of TestRealProgram, inside the container.
func TestProgramInside(t *testing.T) {
	p := NewProgram("/etc/resolv.conf", slog.New(slog.NewTextHandler(t.Output(), nil)))
	r := vpn()
	r.DNS.Servers = r.DNS.Servers[:1]
	var err error
	switch step := os.Getenv(insideVariable); step {
	case "":
		t.Skip("only in a container")
	case "set":
		err = p.Set(t.Context(), r)
	case "revert": // by another process
		if left, err := p.Leftover(t.Context()); !left || err != nil {
			t.Errorf("left %v, %v", left, err)
		}
		if servers, _, err := p.Original(); err != nil || !slices.Equal(servers, []netip.Addr{netip.MustParseAddr("192.0.2.53")}) {
			t.Errorf("the original servers are %v, %v", servers, err)
		}
		err = p.Revert(t.Context())
	case "nothing":
		if left, err := p.Leftover(t.Context()); left || err != nil {
			t.Errorf("left %v, %v", left, err)
		}
		err = p.Revert(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestRealProgram(t *testing.T) {
	harness.Require(t, "systemd-nspawn", "mmdebstrap")
	binary := container.BuildTests(t, "./routing/resolvconf")
	for _, name := range []string{"openresolv", "resolvconf"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := container.Start(t, container.Options{
				Packages: []string{name}, Without: []string{"systemd-resolved", "libnss-resolve"},
				Bind: map[string]string{"/opt/tests": binary},
			})
			lan, corp := harness.NewNamespace(t, "lan"), harness.NewNamespace(t, "corp")
			c.Connect(t, "eth0", lan, "lan0")
			c.Connect(t, "vpn0", corp, "corp0")
			lan.IP(t, "addr add 192.0.2.1/24 dev lan0")
			corp.IP(t, "addr add 10.1.2.1/24 dev corp0")
			harness.StartDNS(t, lan, "192.0.2.53", map[string]string{"www.example.org": "198.51.100.1"})
			harness.StartDNS(t, corp, "10.1.2.3", map[string]string{"www.example.org": "10.8.8.8", "www.corp.example": "10.9.9.9"})
			c.Run(t, "ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
			c.Run(t, "ip", "addr", "add", "10.1.2.2/24", "dev", "vpn0")
			// What a DHCP client does.
			c.Run(t, "sh", "-c", "printf 'nameserver 192.0.2.53\nsearch lan.example\n' | resolvconf -a eth0.dhcp")
			if name == "resolvconf" {
				c.Run(t, "ln", "-sfn", "/run/resolvconf/resolv.conf", "/etc/resolv.conf")
			}
			before := c.Run(t, "sh", "-c", "ls -l /etc/resolv.conf | cut -d' ' -f 1-5,9-; cat /etc/resolv.conf")
			step := func(step string) {
				t.Helper()
				t.Log(c.Run(t, "env", insideVariable+"="+step, "/opt/tests", "-test.v", "-test.run=^TestProgramInside$"))
			}
			lookup := func(name, want string) {
				t.Helper()
				out, _ := c.Output(container.Command{Argv: []string{"getent", "ahostsv4", name}})
				if got, _, _ := strings.Cut(out, " "); got != want {
					t.Errorf("%s is %q, want %q; resolv.conf is\n%s", name, got, want, c.ReadFile(t, "/etc/resolv.conf"))
				}
			}
			step("nothing")
			lookup("www.example.org", "198.51.100.1")
			for range 2 {
				step("set")
				lookup("www.example.org", "10.8.8.8")
				lookup("www", "10.9.9.9")
			}
			step("revert")
			lookup("www.example.org", "198.51.100.1")
			step("nothing")
			if after := c.Run(t, "sh", "-c", "ls -l /etc/resolv.conf | cut -d' ' -f 1-5,9-; cat /etc/resolv.conf"); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}
