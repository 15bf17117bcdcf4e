package container_test

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// asleep is how long the machine of TestSuspend sleeps.
const asleep = time.Second

// TestSuspend is a real systemd-logind that suspends the machine, but for the
// kernel's part in it, which is a program that waits: the app is told before,
// the machine sleeps when it is ready or after 3 s, and it is told after.
func TestSuspend(t *testing.T) {
	harness.Require(t, "systemd-nspawn", "mmdebstrap")
	m := newMachine(t, programs{
		daemon: container.Build(t, "./cmd/vpnproviderd"),
		client: container.Build(t, "./test/container/testclient"),
	})
	m.canSuspend()
	for _, ready := range []bool{true, false} {
		m.testSuspend(ready)
	}
}

// canSuspend has logind believe so, and nothing happen.
func (m *machine) canSuspend() {
	m.t.Helper()
	m.WriteFile(m.t, "/run/power/state", "freeze mem\n", 0o644)
	m.WriteFile(m.t, "/run/power/mem_sleep", "s2idle [deep]\n", 0o644)
	m.WriteFile(m.t, "/run/power/disk", "[disabled]\n", 0o644)
	// A container has no such folder.
	m.Run(m.t, "sh", "-ec", "mount -o remount,rw /sys; mkdir /sys/power; mount --bind /run/power /sys/power; mount -o remount,ro,bind /sys")
	m.WriteFile(m.t, "/etc/systemd/system/systemd-suspend.service.d/stub.conf",
		fmt.Sprintf("[Service]\nExecStart=\nExecStart=/bin/sh -c 'date +%%%%s%%%%6N >/run/slept; sleep %d; date +%%%%s%%%%6N >/run/woke'\n", int(asleep.Seconds())), 0o644)
	// So that it is the daemon that gives up the waiting, however slow the machine.
	m.WriteFile(m.t, "/etc/systemd/logind.conf.d/wait.conf", "[Login]\nInhibitDelayMaxSec=60\n", 0o644)
	m.Run(m.t, "systemctl", "daemon-reload")
	m.Run(m.t, "systemctl", "restart", "systemd-logind")
	harness.Eventually(m.t, harness.Timeout, "the machine can be suspended", func() error {
		out, err := m.Output(container.Command{Argv: []string{
			"busctl", "call", "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "CanSuspend",
		}})
		if err != nil || !strings.Contains(out, `"yes"`) {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func (m *machine) testSuspend(ready bool) {
	t := m.t
	t.Helper()
	argv := []string{"/opt/testclient", "messages"}
	if ready {
		argv = append(argv, "acknowledge")
	}
	app := m.Start(t, container.Command{Argv: argv, User: container.Alice})
	app.Await(t, "session /")
	p := fullTunnel()
	p.Reconnect = true
	m.tell(app, "applied", p)
	m.requireLock(true)

	begun := time.Duration(time.Now().UnixMicro()) * time.Microsecond
	if out, err := m.Output(container.Command{Argv: []string{"systemctl", "suspend"}}); err != nil {
		t.Logf("systemctl suspend: %v\n%s", err, out)
	}
	suspend := messageAt(t, app, "suspend")
	resume := messageAt(t, app, "resume")
	slept, woke := m.timeIn("/run/slept"), m.timeIn("/run/woke")
	t.Logf("ready %v: told suspend at 0, asleep at %v, awake at %v, told resume at %v", ready, slept-suspend, woke-suspend, resume-suspend)
	switch wait := slept - suspend; {
	case woke-slept < asleep:
		t.Errorf("it slept for %v", woke-slept)
	case resume < woke:
		t.Errorf("resume was told before the machine was awake")
	case wait <= 0:
		t.Errorf("suspend was told after the machine slept")
	case ready && wait > 2900*time.Millisecond:
		t.Errorf("the app was ready, and the machine slept %v later", wait)
	case !ready && (slept-begun < 3*time.Second || wait > 20*time.Second):
		t.Errorf("the app was not ready, and the machine slept after %v, want 3 s", wait)
	}
	m.requireLock(true) // for the next time
	if got := m.state(); got != "reconnecting" {
		t.Errorf("after resume the session is %s", got)
	}
	m.tell(app, "applied", p)
	harness.Eventually(t, harness.Timeout, "new parameters end the reconnecting", func() error {
		if got := m.state(); got != "connected" {
			return errors.New(got)
		}
		return nil
	})
	if n := strings.Count(app.Output(), "message "); n != 2 { // that it is connected was told before the app listened
		t.Errorf("there were %d messages:\n%s", n, app.Output())
	}
	m.disconnect(app)
	m.requireNothing()
}

// requireLock says that the daemon holds up sleep, or does not.
func (m *machine) requireLock(want bool) {
	m.t.Helper()
	harness.Eventually(m.t, harness.Timeout, fmt.Sprintf("the daemon's lock: %v", want), func() error {
		out := m.Run(m.t, "systemd-inhibit", "--list", "--no-pager")
		for line := range strings.Lines(out) {
			if strings.Contains(line, "vpnproviderd") && strings.Contains(line, "sleep") && strings.Contains(line, "delay") == want {
				return nil
			}
		}
		return errors.New(out)
	})
}

// messageAt is the time at which the app was told, since 1970.
func messageAt(t *testing.T, app *container.Process, message string) time.Duration {
	t.Helper()
	var at time.Duration
	re := regexp.MustCompile("message " + message + ` "" at (\d+)\n`)
	harness.Eventually(t, harness.Timeout, "the app is told "+message, func() error {
		found := re.FindStringSubmatch(app.Output())
		if found == nil {
			return errors.New(app.Output())
		}
		us, err := strconv.ParseInt(found[1], 10, 64)
		at = time.Duration(us) * time.Microsecond
		return err
	})
	return at
}

// timeIn is the time that the stub of the machine's sleep has written.
func (m *machine) timeIn(file string) time.Duration {
	m.t.Helper()
	us, err := strconv.ParseInt(strings.TrimSpace(m.ReadFile(m.t, file)), 10, 64)
	if err != nil {
		m.t.Fatal(err)
	}
	return time.Duration(us) * time.Microsecond
}

// state of the config.
func (m *machine) state() string {
	m.t.Helper()
	out := m.Run(m.t, "busctl", "call", "org.vpnprovider1", "/org/vpnprovider1", "org.vpnprovider1.Manager", "ListConfigs")
	fields := strings.Fields(out)
	return strings.Trim(fields[len(fields)-1], `"`)
}
