package ui

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// asking makes the test's program one that asks. Its value is how.
const asking = "UI_TEST_ASKS"

func TestMain(m *testing.M) {
	if how := os.Getenv(asking); how != "" {
		ask(how)
		return
	}
	harness.Main(m)
}

func ask(how string) {
	bus := ""
	switch how {
	case "another bus":
		bus = "unix:path=/nonexistent"
	case "background": // as a shell's job
		job := exec.Command("/proc/self/exe")
		job.Env = append(os.Environ(), asking+"=asks")
		job.Stdin, job.Stdout, job.Stderr = os.Stdin, os.Stdout, os.Stderr
		job.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := job.Run(); err != nil {
			fmt.Println(err)
		}
		return
	}
	fmt.Println("foreground", InForeground())
	end := Ask(context.Background(), bus)
	fmt.Println("may be asked")
	end()
	end()
	fmt.Println("over")
}

// agents stand in for polkit's agent: they say how they are called, close the
// descriptor when they are ready, and end when they are told to, or do not.
const (
	politeAgent = `#!/bin/sh
trap 'echo agent ends; exit' TERM
echo "agent $*"
exec 3>&-
while :; do /bin/sleep 0.05; done
`
	deafAgent = `#!/bin/sh
trap '' TERM
echo "agent $*"
exec 3>&-
while :; do /bin/sleep 0.05; done
`
)

// Whoever sits at the terminal in whose foreground a program is, can be asked;
// afterwards the terminal is the program's again.
func TestAsk(t *testing.T) {
	harness.Require(t)
	const asked = "foreground true\nagent --fallback --notify-fd 3\nmay be asked\n"
	for _, tt := range []struct {
		name, how, agent string
		uid              uint32
		want             string
	}{
		{"on a terminal", "asks", politeAgent, harness.Alice, asked + "agent ends\nover\n"},
		{"an agent that does not end", "asks", deafAgent, harness.Alice, asked + "over\n"},
		{"no agent", "asks", "", harness.Alice, "foreground true\nmay be asked\nover\n"},
		{"in the background", "background", politeAgent, harness.Alice, "foreground false\nmay be asked\nover\n"},
		{"on another bus", "another bus", politeAgent, harness.Alice, "foreground true\nmay be asked\nover\n"},
		{"as root", "asks", politeAgent, 0, "foreground true\nmay be asked\nover\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := harness.TempDir(t)
			if tt.agent != "" {
				if err := os.WriteFile(filepath.Join(dir, polkitAgent), []byte(tt.agent), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if got := onTerminal(t, tt.uid, asking+"="+tt.how, "PATH="+dir); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// onTerminal runs the test's program to its end in the foreground of a
// terminal of its own, and returns what is seen there.
func onTerminal(t *testing.T, uid uint32, env ...string) string {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	control := os.NewFile(uintptr(fd), "ptmx")
	defer control.Close()
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err = errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Setctty: true, Pdeathsig: unix.SIGKILL,
		Credential: &syscall.Credential{Uid: uid, Gid: uid},
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	kill := time.AfterFunc(harness.Timeout, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	var seen []byte
	for buf := make([]byte, 4096); ; {
		n, err := control.Read(buf)
		seen = append(seen, buf[:n]...)
		if err != nil {
			break // EIO once nobody has the terminal open
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	return strings.ReplaceAll(string(seen), "\r\n", "\n")
}
