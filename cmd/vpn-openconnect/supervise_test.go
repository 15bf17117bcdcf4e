package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/openconnect"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/openconnecttest"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/vpnenv"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// fakeSession notes what it is asked for, one line each.
type fakeSession struct {
	messages  chan client.Message
	applyErrs []error // of the first calls
	broken    chan error

	mu    sync.Mutex
	calls []string
}

func (f *fakeSession) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeSession) seen() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.calls, "; ")
}

func (f *fakeSession) Apply(_ context.Context, s vpnenv.Settings) ([]string, error) {
	f.note("apply %v mtu %d", s.Addresses, s.MTU)
	if len(f.applyErrs) == 0 {
		return []string{"a warning"}, nil
	}
	err := f.applyErrs[0]
	f.applyErrs = f.applyErrs[1:]
	return nil, err
}

func (f *fakeSession) Carry(_ context.Context, packets *os.File) (<-chan error, error) {
	f.note("carry")
	_, err := packets.Write([]byte("packet"))
	return f.broken, err
}

func (f *fakeSession) Messages() <-chan client.Message { return f.messages }

func (f *fakeSession) Acknowledge(_ context.Context, kind client.MessageKind) error {
	f.note("acknowledge %s", kind)
	return nil
}

func (f *fakeSession) End(_ context.Context, failed bool) error {
	f.note("end failed=%v", failed)
	return nil
}

// text is what a user would see.
type text struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *text) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *text) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// rig is a supervisor over a fake openconnect and a fake session.
type rig struct {
	session *fakeSession
	signals chan os.Signal
	shown   *text
	ended   chan error
	s       *supervisor
}

func newRig(t *testing.T, steps string, change func(*supervisor, *fakeSession), env ...string) *rig {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		session: &fakeSession{messages: make(chan client.Message, 8), broken: make(chan error, 1)},
		signals: make(chan os.Signal, 8), shown: &text{}, ended: make(chan error, 1),
	}
	env = append(env, "INTERNAL_IP4_ADDRESS=10.99.0.5", "INTERNAL_IP4_MTU=1434", openconnecttest.Env(steps))
	process, err := openconnect.Start(openconnect.Options{
		Program: self, Env: append(openconnect.Env(os.Environ(), vpnenv.Owned), env...),
		Self: []string{self, asScript}, Stdout: r.shown, Stderr: r.shown, Wanted: vpnenv.Wanted,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.s = &supervisor{process: process, session: r.session, log: r.shown}
	if change != nil {
		change(r.s, r.session)
	}
	t.Cleanup(func() {
		_ = process.Signal(unix.SIGKILL)
		<-process.Done()
		if t.Failed() {
			t.Logf("calls: %s\nshown:\n%s", r.session.seen(), r.shown)
		}
	})
	go func() { r.ended <- r.s.run(r.signals) }()
	return r
}

func (r *rig) await(t *testing.T, call string) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, call, func() error {
		if seen := r.session.seen(); !strings.Contains(seen, call) {
			return errors.New(seen)
		}
		return nil
	})
}

func (r *rig) awaitShown(t *testing.T, what string) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, what, func() error {
		if shown := r.shown.String(); !strings.Contains(shown, what) {
			return errors.New(shown)
		}
		return nil
	})
}

// end waits for the end and checks the error and openconnect's exit code.
func (r *rig) end(t *testing.T, says string, code int) {
	t.Helper()
	select {
	case err := <-r.ended:
		if fmt.Sprint(err) != says && (says == "" || !strings.Contains(fmt.Sprint(err), says)) {
			t.Errorf("error %v, want %q", err, says)
		}
		if got := r.s.process.ExitCode(); got != code {
			t.Errorf("exit code %d, want %d", got, code)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no end")
	}
}

const none = "<nil>"

func TestConnectAndEnd(t *testing.T) {
	r := newRig(t, "script echo wait exit=0", nil, "CISCO_BANNER=hello\nthere")
	r.await(t, "carry")
	r.awaitShown(t, "vpn-openconnect: connected: [10.99.0.5/32], 1 block(s) through the tunnel, 0 outside\n")
	r.awaitShown(t, "| hello\n| there\n")
	r.awaitShown(t, "vpn-openconnect: a warning\n")
	r.signals <- unix.SIGTERM
	r.end(t, none, 0)
	r.awaitShown(t, "got terminated\n")
	if want := "apply [10.99.0.5/32] mtu 1434; carry; end failed=false"; r.session.seen() != want {
		t.Errorf("calls: %s\nwant:  %s", r.session.seen(), want)
	}
}

func TestOpenconnectFails(t *testing.T) {
	r := newRig(t, "error=Login_failed. exit=2", nil)
	r.end(t, none, 2)
	if want := "end failed=true"; r.session.seen() != want {
		t.Errorf("calls: %s\nwant:  %s", r.session.seen(), want)
	}
}

// TestNothingOfABadEnvironment: nothing is applied, and the user learns why.
func TestNothingOfABadEnvironment(t *testing.T) {
	r := newRig(t, "script wait exit=0", nil, "CISCO_DEF_DOMAIN=a b$c")
	r.end(t, "CISCO_DEF_DOMAIN has something that is no domain", 0)
	if want := "end failed=true; end failed=true"; r.session.seen() != want {
		t.Errorf("calls: %s\nwant:  %s", r.session.seen(), want)
	}
}

func TestDaemonRefuses(t *testing.T) {
	r := newRig(t, "script wait exit=0", func(_ *supervisor, f *fakeSession) {
		f.applyErrs = []error{errors.New("cannot set the parameters: no")}
	})
	r.end(t, "cannot set the parameters: no", 0)
	r.awaitShown(t, "got interrupt\n")
}

// TestDaemonIsHeldUp: systemd-resolved does not answer the daemon for a while,
// which ends nothing.
func TestDaemonIsHeldUp(t *testing.T) {
	r := newRig(t, "script wait exit=0", func(_ *supervisor, f *fakeSession) { f.applyErrs = []error{client.ErrTimeout} })
	r.awaitShown(t, "timeout; trying again")
	r.await(t, "apply [10.99.0.5/32] mtu 1434; apply [10.99.0.5/32] mtu 1434; carry")
	r.signals <- unix.SIGTERM
	r.end(t, none, 0)
}

func TestSessionEnds(t *testing.T) {
	for reason, says := range map[string]string{"": none, "replaced": "the session ended: replaced"} {
		r := newRig(t, "script wait exit=0", nil)
		r.await(t, "carry")
		r.session.messages <- client.Message{Kind: client.MessageDisconnected, Error: reason}
		close(r.session.messages)
		r.end(t, says, 0)
		r.awaitShown(t, "got interrupt\n")
	}
}

// TestSessionEndsWhilePrompting: nobody is asked for a password in vain.
func TestSessionEndsWhilePrompting(t *testing.T) {
	r := newRig(t, "error=Password: wait exit=1", nil)
	r.awaitShown(t, "Password:")
	r.session.messages <- client.Message{Kind: client.MessageDisconnected, Error: "connection timed out"}
	r.end(t, "the session ended: connection timed out", 1)
}

func TestRelayBreaks(t *testing.T) {
	r := newRig(t, "script wait exit=0", nil)
	r.await(t, "carry")
	r.session.broken <- errors.New("cannot relay: no")
	r.end(t, "cannot relay: no", 0)
}

// TestNetworkChange: openconnect is told at once, and the parameters are set
// again when it has reached its server, not before.
func TestNetworkChange(t *testing.T) {
	r := newRig(t, "print=Connected_to_HTTPS_on_v script wait wait print=Connected_to_HTTPS_on_v wait exit=0", nil)
	r.await(t, "carry")
	r.session.messages <- client.Message{Kind: client.MessageLinkDown}
	r.awaitShown(t, "the network is gone")
	r.session.messages <- client.Message{Kind: client.MessageLinkUp}
	r.awaitShown(t, "got user defined signal 2\n")
	if seen := r.session.seen(); strings.Count(seen, "apply") != 1 {
		t.Errorf("too early: %s", seen)
	}
	r.session.messages <- client.Message{Kind: client.MessageResume}
	r.await(t, "carry; apply [10.99.0.5/32] mtu 1434")
	r.signals <- unix.SIGTERM
	r.end(t, none, 0)
	if seen := r.session.seen(); strings.Count(seen, "apply") != 2 || strings.Count(seen, "carry") != 1 {
		t.Errorf("calls: %s", seen)
	}
}

// TestQuiet: openconnect says nothing, so the change itself must do.
func TestQuiet(t *testing.T) {
	r := newRig(t, "script wait wait exit=0", func(s *supervisor, _ *fakeSession) { s.quiet = true })
	r.await(t, "carry")
	r.session.messages <- client.Message{Kind: client.MessageLinkChanged}
	r.await(t, "carry; apply")
	r.awaitShown(t, "got user defined signal 2\n")
	r.signals <- unix.SIGTERM
	r.end(t, none, 0)
}

// TestReachedWithoutCause: openconnect reconnects by itself, or the server
// writes such a line: the daemon is not bothered.
func TestReachedWithoutCause(t *testing.T) {
	r := newRig(t, "script print=Connected_to_HTTPS_on_v print=Connected_to_HTTPS_on_v wait exit=0", nil)
	r.await(t, "carry")
	r.signals <- unix.SIGTERM
	r.end(t, none, 0)
	if seen := r.session.seen(); strings.Count(seen, "apply") != 1 {
		t.Errorf("calls: %s", seen)
	}
}

func TestMTUFollowsOpenconnect(t *testing.T) {
	r := newRig(t, "print=Detected_MTU_of_1400_bytes_(was_1434) script wait print=Detected_MTU_of_99999_bytes print=Detected_MTU_of_0_bytes "+
		"print=Detected_MTU_of_1300_bytes print=Detected_MTU_of_1300_bytes wait exit=0", nil)
	// openconnect's words and the script's come by two ways: whichever is
	// first, the MTU that was found holds in the end.
	r.await(t, "mtu 1400")
	r.await(t, "carry")
	r.signals <- unix.SIGUSR1
	r.await(t, "apply [10.99.0.5/32] mtu 1300")
	r.signals <- unix.SIGTERM
	r.end(t, none, 0)
	if seen := r.session.seen(); strings.Count(seen, "mtu 1400") != 1 || strings.Count(seen, "mtu 1300") != 1 {
		t.Errorf("calls: %s", seen)
	}
}

func TestScriptNotStarted(t *testing.T) {
	r := newRig(t, "error=execl:_Argument_list_too_long wait exit=0", nil)
	r.end(t, "thousands of routes", 0)
}

func TestScriptFails(t *testing.T) {
	r := newRig(t, "script=nofd wait exit=0", nil)
	r.end(t, "cannot take the tunnel over from openconnect", 0)
}

func TestSuspend(t *testing.T) {
	r := newRig(t, "script wait exit=0", nil)
	r.await(t, "carry")
	r.session.messages <- client.Message{Kind: client.MessageSuspend}
	r.await(t, "acknowledge suspend")
	r.signals <- unix.SIGTERM
	r.end(t, none, 0)
}

func TestSignalsArePassedOn(t *testing.T) {
	for _, sig := range signals() {
		r := newRig(t, "print=up wait exit=0", nil)
		r.awaitShown(t, "up\n")
		r.signals <- sig
		r.end(t, none, 0)
		r.awaitShown(t, "got "+sig.String()+"\n")
	}
}
