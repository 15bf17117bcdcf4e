package container_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

func TestContainer(t *testing.T) {
	t.Parallel()
	shown := filepath.Join(harness.TempDir(t), "shown")
	if err := os.WriteFile(shown, []byte("shown"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := container.Start(t, container.Options{Bind: map[string]string{"/opt/shown": shown}})
	if got := c.Run(t, "cat", "/proc/1/comm"); got != "systemd\n" {
		t.Errorf("process 1 is %q", got)
	}
	if got := c.Run(t, "cat", "/opt/shown"); got != "shown" {
		t.Errorf("bound: %q", got)
	}
	_, err := c.Output(container.Command{Argv: []string{"sh", "-c", "exit 7"}, Unit: true})
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit 7 in a unit: %v", err)
	}
	if got := c.RunAs(t, container.Alice, "sh", "-c", `id -un; loginctl show-session -P Active "$XDG_SESSION_ID"`); got != "alice\nyes\n" {
		t.Errorf("alice's session: %q", got)
	}
	c.WriteFile(t, "/etc/new/file", "x", 0o640)
	if got := c.Run(t, "stat", "-c", "%a %U", "/etc/new/file"); got != "640 root\n" {
		t.Errorf("a file written: %q", got)
	}
	if got := c.ReadFile(t, "/etc/new/file"); got != "x" {
		t.Errorf("a file written: %q", got)
	}

	router := harness.NewNamespace(t, "router")
	c.Connect(t, "eth0", router, "toward")
	c.Run(t, "ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	router.IP(t, "addr add 192.0.2.1/24 dev toward")
	c.Run(t, "ping", "-c1", "-W20", "192.0.2.1")
}

// TestOthersAreSeparate: two at a time, on one root, neither of which sees what
// the other writes.
func TestOthersAreSeparate(t *testing.T) {
	t.Parallel()
	a, b := container.Start(t, container.Options{}), container.Start(t, container.Options{})
	a.WriteFile(t, "/etc/mine", "a", 0o644)
	if out, err := b.Output(container.Command{Argv: []string{"test", "!", "-e", "/etc/mine"}}); err != nil {
		t.Errorf("%v %s", err, out)
	}
	for _, c := range []*container.Container{a, b} {
		if got := c.Run(t, "systemctl", "is-active", "systemd-resolved", "systemd-logind", "dbus"); got != "active\nactive\nactive\n" {
			t.Error(got)
		}
	}
}

const holderVariable = "CONTAINER_TEST_HOLDER"

// TestNothingSurvivesKill: a test process that is killed takes its container
// with it.
func TestNothingSurvivesKill(t *testing.T) {
	if os.Getenv(holderVariable) != "" {
		c := container.Start(t, container.Options{})
		fmt.Printf("leader %d\n", c.Leader)
		select {} // until killed
	}
	harness.Require(t, "systemd-nspawn")
	holder := exec.Command("/proc/self/exe", "-test.run=^TestNothingSurvivesKill$", "-test.v")
	holder.Env = append(os.Environ(), holderVariable+"=1")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	leader := 0
	for lines := bufio.NewScanner(out); leader == 0 && lines.Scan(); {
		if _, pid, ok := strings.Cut(lines.Text(), "leader "); ok {
			leader, _ = strconv.Atoi(pid)
		}
	}
	_ = holder.Process.Kill()
	_ = holder.Wait()
	if leader == 0 {
		t.Fatal("there was no container")
	}
	harness.Eventually(t, harness.Timeout, "the container is gone", func() error {
		if err := syscall.Kill(leader, 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("process %d is there: %v", leader, err)
		}
		return nil
	})
}
