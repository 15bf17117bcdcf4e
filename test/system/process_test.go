package system

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// run runs the daemon's program to its end, and gives its exit code.
func (m *machine) run(t testing.TB, uid uint32, args ...string) (code int, out string) {
	t.Helper()
	out, err := m.Host.Output(t, harness.Command{Argv: append([]string{harness.Binary(t, "vpnproviderd")}, args...), UID: uid})
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), out
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, out
}

// A second daemon does not start beside the first, and --cleanup does not run
// beside it; the first is not disturbed.
func TestSecondDaemon(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.establish()
	before := v.Host.Snapshot(t, resolvConf)
	other := harness.StartBus(t, v.Router, harness.BusOptions{Policy: harness.ShippedPolicy})
	dir := harness.TempDir(t)
	args := func(bus, runtimeDir, stateDir string, more ...string) []string {
		return append([]string{
			"--bus", bus, "--runtime-dir", runtimeDir, "--state-dir", stateDir, "--config-dir", dir,
			"--authorization", "owner", "--resolver", "file", "--resolv-conf", resolvConf,
		}, more...)
	}
	d := v.daemon
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"the same bus":            {args(v.bus.Address, filepath.Join(dir, "run"), filepath.Join(dir, "state")), wire.BusName},
		"the same runtime folder": {args(other.Address, d.RuntimeDir, filepath.Join(dir, "state")), "running"},
		"both":                    {args(v.bus.Address, d.RuntimeDir, d.StateDir), wire.BusName},
		"--cleanup":               {args(v.bus.Address, d.RuntimeDir, d.StateDir, "--cleanup"), "running"},
	} {
		if code, out := v.run(t, 0, c.args...); code != 1 || !strings.Contains(out, c.says) {
			t.Errorf("%s: exit code %d:\n%s", name, code, out)
		}
		if diff := before.Diff(v.Host.Snapshot(t, resolvConf)); diff != "" {
			t.Errorf("%s: the network changed:\n%s", name, diff)
		}
		v.requireState(wire.StateConnected)
		v.ping(t, "1", includedIPv4)
	}
}

// Asked to end, the daemon tells the provider, undoes everything, and exits
// with success, in whatever state a session is.
func TestStop(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	for _, state := range []string{wire.StateIdle, wire.StateConnecting, wire.StateConfigured, wire.StateConnected, wire.StateReconnecting} {
		var session godbus.ObjectPath
		if state != wire.StateIdle {
			session = v.reach(state)
		}
		v.provider.trace()
		v.ui.trace()
		v.daemon.Stop(t)
		v.Host.RequireSnapshot(t, v.before, resolvConf)
		if session != "" {
			end := []string{"config disconnecting", "config idle (shutdown)", "-session"}
			requireTrace(t, state+", the user interface", v.ui.traceTo("-session", v.config, session), end...)
			requireTrace(t, state+", the provider", v.provider.traceTo("-session", v.config, session),
				end[0], "disconnected: shutdown", end[1], end[2])
		}
		v.startAgain(t)
		v.register(dict{})
	}

	// In the middle of an update.
	session := v.connect()
	v.configure(session, fullTunnel())
	small := len(v.look(t).text)
	done := v.provider.begin(session, "SetParameters", slow())
	harness.Eventually(t, harness.Timeout, "the update has begun", func() error {
		if now, err := v.tryLook(); err != nil || len(now.text) < small+1000 {
			return errors.New("not yet")
		}
		return nil
	})
	v.daemon.Process().Signal(unix.SIGINT)
	if err := v.daemon.Process().Wait(t); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	t.Logf("the update: %v", (<-done).Err)
	v.Host.RequireSnapshot(t, v.before, resolvConf)
}

// Without the bus nobody can end a session any more: the daemon ends it, and
// itself, with a failure, so that it is started again.
func TestBusLost(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	_, channel := v.establish()
	v.bus.Kill(t)
	channel.awaitEnd(t)
	if err := v.daemon.Process().Wait(t); err == nil {
		t.Error("the daemon ended with success")
	}
	v.Host.RequireSnapshot(t, v.before, resolvConf)
	v.bus.Start(t)
	v.startAgain(t)
	v.party(t, harness.Alice, app).mainJob()
}

// A bus that hangs does not keep the daemon from ending, even where it takes
// nothing any more of what the daemon has to send.
func TestStopWhileBusHangs(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.register(dict{"packetSignals": godbus.MakeVariant(true)})
	session := v.connect()
	v.configure(session, fullTunnel())
	conn, err := v.Host.Dial("udp", includedIPv4+":99", harness.Timeout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	v.bus.Process().Signal(unix.SIGSTOP)
	defer v.bus.Process().Signal(unix.SIGCONT)
	for range 2000 {
		if _, err := conn.Write(make([]byte, 1300)); err != nil {
			t.Fatal(err)
		}
	}
	v.daemon.Process().Signal(unix.SIGTERM)
	v.requireClean(t)
	if err := v.daemon.Process().Wait(t); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	v.Host.RequireSnapshot(t, v.before, resolvConf)
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	m := newHost(t)
	bus := harness.StartBus(t, m.Host, harness.BusOptions{Policy: harness.ShippedPolicy})
	dir := harness.TempDir(t)
	folders := []string{"--runtime-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"), "--config-dir", dir}
	for _, c := range []struct {
		code int
		says string
		uid  uint32
		args []string
	}{
		{code: 0, says: "--connect-timeout", args: []string{"--help"}},
		{code: 0, says: "vpnproviderd ", args: []string{"--version"}},
		{code: 0, args: append(folders, "--cleanup", "--resolver", "file")},
		{code: 2, says: "--nonsense", args: []string{"--nonsense"}},
		{code: 2, says: "extra", args: []string{"extra"}},
		{code: 2, says: "--bus", args: []string{"--bus"}},
		{code: 2, says: "everyone", args: []string{"--authorization", "everyone"}},
		{code: 2, says: "magic", args: []string{"--resolver", "magic"}},
		{code: 2, says: "soon", args: []string{"--connect-timeout", "soon"}},
		{code: 2, says: "1:x", args: []string{"--call-rate", "1:x"}},
		{code: 2, says: "loud", args: []string{"--log-level", "loud"}},
		{code: 1, says: "/nowhere", args: append(folders, "--bus", "unix:path=/nowhere")},
		{code: 1, says: "tcp:", args: append(folders, "--bus", "tcp:host=localhost")},
		{code: 1, says: wire.BusName, args: append(folders, "--bus", bus.Address), uid: harness.Alice},
		{code: 1, says: "/proc/nowhere", args: []string{"--bus", bus.Address, "--state-dir", "/proc/nowhere", "--runtime-dir", dir}},
	} {
		code, out := m.run(t, c.uid, c.args...)
		if code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("%q: exit code %d, want %d and %q:\n%s", c.args, code, c.code, c.says, out)
		}
		if strings.Contains(out, "panic") || strings.Contains(out, "goroutine") {
			t.Errorf("%q:\n%s", c.args, out)
		}
	}
	m.Host.RequireSnapshot(t, m.before, resolvConf)
}
