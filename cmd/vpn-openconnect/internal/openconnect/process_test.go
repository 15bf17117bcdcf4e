package openconnect

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/openconnecttest"
)

// output is what a user would see.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

const patience = 10 * time.Second

// until polls: there is nothing to wait on.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not seen in %v: %s", patience, what)
		}
	}
}

func done(t *testing.T, p *Process) int {
	t.Helper()
	select {
	case <-p.Done():
		return p.ExitCode()
	case <-time.After(20 * time.Second):
		t.Fatal("openconnect did not end")
		return 0
	}
}

func start(t *testing.T, steps string, stdin *os.File) (*Process, *output, *output) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr output
	before := descriptors(t)
	env := append(os.Environ(), "FAKE_ADDRESS=10.0.0.1", "FAKE_TEXT=two\nlines", "FAKE_LONG="+strings.Repeat("x", 100000))
	p, err := Start(Options{
		Program: self, Args: []string{"vpn.example"}, Env: append(env, openconnecttest.Env(steps)),
		Self: []string{self, "-as-script"}, Stdin: stdin, Stdout: &stdout, Stderr: &stderr, Wanted: isWanted,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Signal(unix.SIGKILL)
		<-p.Done()
		until(t, "all descriptors closed", func() bool { return descriptors(t) <= before })
	})
	return p, &stdout, &stderr
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func tunnel(t *testing.T, p *Process) Tunnel {
	t.Helper()
	select {
	case tun := <-p.Tunnel():
		return tun
	case <-time.After(patience):
		t.Fatal("no tunnel")
		return Tunnel{}
	}
}

func gone(pid int) bool {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	return err != nil || strings.Contains(string(status), "State:\tZ")
}

// number finds "word 123" in the output.
func number(text, word string) int {
	var n int
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, word+" "); ok {
			n, _ = strconv.Atoi(strings.TrimSpace(rest))
		}
	}
	return n
}

func TestTunnel(t *testing.T) {
	p, stdout, stderr := start(t, "print=hello error=oh script echo wait print=bye exit=7", nil)
	tun := tunnel(t, p)
	if tun.Err != nil {
		t.Fatal(tun.Err)
	}
	want := map[string]string{"FAKE_ADDRESS": "10.0.0.1", "FAKE_TEXT": "two\nlines", "FAKE_LONG": strings.Repeat("x", 100000)}
	if diff := cmp.Diff(want, tun.Env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	packet := []byte("a packet")
	if _, err := tun.Packets.Write(packet); err != nil {
		t.Fatal(err)
	}
	echo := make([]byte, 100)
	if n, err := tun.Packets.Read(echo); err != nil || !bytes.Equal(echo[:n], packet) {
		t.Errorf("echo %q, %v", echo[:n], err)
	}
	if err := tun.Packets.Close(); err != nil {
		t.Fatal(err)
	}
	var script int
	until(t, "the script is named", func() bool {
		script = number(stdout.String(), "script")
		return script != 0
	})
	if gone(script) {
		t.Error("the script ended before openconnect did")
	}
	if err := p.Signal(unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	if code := done(t, p); code != 7 {
		t.Errorf("exit code %d", code)
	}
	until(t, "the script's end", func() bool { return gone(script) })
	wantOut := fmt.Sprintf("hello\nscript %d\ngot user defined signal 2\nbye\n", script)
	if stdout.String() != wantOut || stderr.String() != "oh\n" {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
	if err := p.Signal(unix.SIGUSR2); err != nil {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestExitCodes(t *testing.T) {
	for steps, want := range map[string]int{"exit=0": 0, "exit=1": 1, "exit=2": 2, "kill": 128 + 9} {
		p, _, _ := start(t, steps, nil)
		if code := done(t, p); code != want {
			t.Errorf("%s: exit code %d, want %d", steps, code, want)
		}
	}
}

// TestPromptOnTerminal: the question arrives though no line ends, and what is
// typed on the terminal is openconnect's to read.
func TestPromptOnTerminal(t *testing.T) {
	control, terminal := pty(t)
	p, _, stderr := start(t, "prompt exit=0", terminal)
	until(t, "the prompt", func() bool { return stderr.String() == "Password:" })
	if _, err := control.WriteString("secret\n"); err != nil {
		t.Fatal(err)
	}
	if code := done(t, p); code != 0 || stderr.String() != "Password:\ngot secret\n" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

func pty(t *testing.T) (control, terminal *os.File) {
	t.Helper()
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	if err := unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(control.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return control, terminal
}

func TestEnd(t *testing.T) {
	p, stdout, _ := start(t, "print=up wait print=logged_out exit=0", nil)
	until(t, "its output", func() bool { return strings.Contains(stdout.String(), "up") })
	p.End()
	p.End()
	if code := done(t, p); code != 0 || !strings.Contains(stdout.String(), "got interrupt\nlogged out\n") {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
}

// TestEndOfADeafOne takes the 13 s of the two polite steps.
func TestEndOfADeafOne(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 13 s")
	}
	t.Parallel()
	p, stdout, _ := start(t, "ignore print=up sleep", nil)
	until(t, "its output", func() bool { return strings.Contains(stdout.String(), "up") })
	p.End()
	if code := done(t, p); code != 128+9 {
		t.Errorf("exit code %d", code)
	}
}

// TestLeftBehind: a browser that openconnect started keeps the output open.
func TestLeftBehind(t *testing.T) {
	p, stdout, _ := start(t, "leave=15 print=bye exit=3", nil)
	began := time.Now()
	if code := done(t, p); code != 3 || stdout.String() != "bye\n" {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("waited %v for somebody else's end", took)
	}
}

func TestScriptWithoutSocket(t *testing.T) {
	p, _, stderr := start(t, "script=nofd wait exit=0", nil)
	tun := tunnel(t, p)
	if tun.Err == nil || !strings.Contains(tun.Err.Error(), "passed no packet socket") {
		t.Errorf("got %v", tun.Err)
	}
	until(t, "the script's reason", func() bool { return strings.Contains(stderr.String(), "VPNFD is missing") })
}

func TestNoProgram(t *testing.T) {
	_, err := Start(Options{Program: "/nonexistent/openconnect", Self: []string{"x"}, Stdout: io.Discard, Stderr: io.Discard, Wanted: isWanted})
	if err == nil || !strings.Contains(err.Error(), "cannot start openconnect: fork/exec /nonexistent") {
		t.Errorf("got %v", err)
	}
}

// TestDiesWithParent: kill -9 of the parent leaves neither openconnect nor the
// script.
func TestDiesWithParent(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(self)
	parent.Env = append(os.Environ(), "AS_PARENT=1")
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var child, script int
	lines := bufio.NewScanner(stdout)
	for (child == 0 || script == 0) && lines.Scan() {
		child = max(child, number(lines.Text(), "child"))
		script = max(script, number(lines.Text(), "script"))
	}
	if child == 0 || script == 0 || gone(child) || gone(script) {
		t.Fatalf("child %d, script %d", child, script)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	until(t, "openconnect's end", func() bool { return gone(child) })
	until(t, "the script's end", func() bool { return gone(script) })
}

// TestSelfIsQuoted: the path may have anything a path may have.
func TestSelfIsQuoted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's $HOME;`x` \"y\"")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "self")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nprintf '<%s>' \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/bin/sh", "-c", scriptCommand([]string{path, "a b"}, 3)).CombinedOutput()
	if err != nil || string(out) != "<a b><3>" {
		t.Errorf("%q, %v", out, err)
	}
}
