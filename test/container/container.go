// Package container boots a whole Debian, with systemd as process 1, its own
// network and its own message bus, for tests of what needs a real one:
// activation, unit files, systemd-resolved, polkit, resolvconf.
//
// Nothing of the machine is changed: the container's root is a folder in a
// cache, made once for each list of packages and never written to afterwards
// (what a container writes is in memory, and gone with it).
//
// A container is a process namespace whose first process is killed by the
// kernel when the test process ends, however it ends; so nothing is left
// running. What a killed test leaves is an empty cgroup, which the next one
// removes.
package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// bootTimeout is many times what a boot takes.
const bootTimeout = time.Minute

// Options are all optional.
type Options struct {
	// Packages are installed, in addition to those of Packages.
	Packages []string

	// Without are not installed, of those.
	Without []string

	// Bind shows files and folders of the machine in the container, read-only:
	// the path there, and here.
	Bind map[string]string
}

// Container is a running one. Its methods may be called from several
// goroutines. It ends with the test.
type Container struct {
	// Leader is its process 1, as seen from here.
	Leader int

	name    string
	cmd     *exec.Cmd
	console output
	exited  chan struct{}
	err     error // how it ended; read after exited is closed
}

// started numbers the containers of this process.
var started atomic.Int64

// Start boots a container with a loopback interface and no other, and waits
// until all its services are up. It runs as root; where root or a program is
// missing the test is skipped, in CI it fails.
func Start(t testing.TB, opts Options) *Container {
	t.Helper()
	harness.Require(t, "mmdebstrap", "systemd-nspawn", "unshare", "nsenter", "tar", "zstd")
	root := prepareRoot(t, opts)
	removeCgroups()
	c := &Container{name: fmt.Sprintf("%s%d-%d", cgroupPrefix, os.Getpid(), started.Add(1)), exited: make(chan struct{})}
	cgroups := makeCgroups(t, c.name)
	argv := []string{
		"systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--directory=" + root, "--machine=" + c.name, "--boot",
		"--private-network", "--volatile=overlay", "--bind=/dev/net/tun", "--console=pipe", "--link-journal=no",
		// As on a machine: so that units can have every sandbox they ask for.
		"--capability=all", "--system-call-filter=bpf",
	}
	for inside, outside := range opts.Bind {
		argv = append(argv, "--bind-ro="+outside+":"+inside)
	}
	// unshare makes nspawn the first process of a namespace.
	c.cmd = exec.Command("/bin/sh", append([]string{
		"-c", `for g in $CGROUPS; do echo $$ >$g/cgroup.procs || exit; done; exec unshare --mount --pid --fork --kill-child=KILL --mount-proc "$@"`, "sh",
	}, argv...)...)
	c.cmd.Env = append(os.Environ(), "CGROUPS="+strings.Join(cgroups, " "), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "SYSTEMD_NSPAWN_LOCK=0")
	c.cmd.Stdout, c.cmd.Stderr = &c.console, &c.console
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.run(); err != nil {
		t.Fatalf("cannot start a container: %v", err)
	}
	t.Cleanup(func() { c.stop(t) })
	c.awaitBoot(t)
	return c
}

// run starts it on a thread that lives as long: the kernel takes the thread's
// end for the parent's.
func (c *Container) run() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		result <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.exited)
		}
	}()
	return <-result
}

func (c *Container) awaitBoot(t testing.TB) {
	t.Helper()
	harness.Eventually(t, bootTimeout, "systemd is up in the container", func() error {
		select {
		case <-c.exited:
			t.Fatalf("the container ended: %v\n%s", c.err, c.console.String())
		default:
		}
		return c.findLeader()
	})
	out, err := c.Output(Command{Argv: []string{"timeout", strconv.Itoa(int(bootTimeout.Seconds())), "systemctl", "is-system-running", "--wait"}})
	if err != nil {
		failed, _ := c.Output(Command{Argv: []string{"systemctl", "--no-pager", "--failed"}})
		t.Fatalf("the container is %q\n%s", strings.TrimSpace(out), failed)
	}
}

// findLeader looks for the container's process 1: of nspawn's children the one
// with a socket of systemd in its root.
func (c *Container) findLeader() error {
	for _, nspawn := range children(c.cmd.Process.Pid) {
		for _, pid := range children(nspawn) {
			info, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/systemd/private", pid))
			if err == nil && info.Mode()&os.ModeSocket != 0 {
				c.Leader = pid
				return nil
			}
		}
	}
	return errors.New("no process with systemd's socket so far")
}

func children(pid int) []int {
	var found []int
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for field := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(field); err == nil {
				found = append(found, n)
			}
		}
	}
	return found
}

// stop ends it at once; nobody is asked.
func (c *Container) stop(t testing.TB) {
	t.Helper()
	if t.Failed() {
		// Without the commands that tests run to look at something, again and again.
		journal, err := c.Output(Command{Argv: []string{"sh", "-c", "journalctl --no-pager --output=short-monotonic | grep -v 'run-u[0-9]*[.]service' | tail -n 300"}})
		if err == nil {
			t.Logf("the container's journal:\n%s", journal)
		}
		t.Logf("the container's console:\n%s", c.console.String())
	}
	// The first process of the namespace: unshare then reaps it.
	for _, nspawn := range children(c.cmd.Process.Pid) {
		_ = syscall.Kill(nspawn, syscall.SIGKILL)
	}
	select {
	case <-c.exited:
	case <-time.After(harness.Timeout):
		_ = c.cmd.Process.Kill()
		<-c.exited
	}
	harness.Eventually(t, harness.Timeout, "the container's cgroups are gone", func() error {
		return removeCgroup(c.name)
	})
}

// Root is the container's file system as the test process sees it:
// Root()+"/etc/x" is the container's /etc/x.
func (c *Container) Root() string { return fmt.Sprintf("/proc/%d/root", c.Leader) }

// Bus is the address of its system bus, for root outside.
func (c *Container) Bus() string { return "unix:path=" + c.Root() + "/run/dbus/system_bus_socket" }

// Connect joins the container and a namespace with a pair of interfaces, both
// up.
func (c *Container) Connect(t testing.TB, inside string, ns *harness.Namespace, outside string) {
	t.Helper()
	ns.IP(
		t,
		fmt.Sprintf("link add %s type veth peer name %s netns /proc/%d/ns/net", outside, inside, c.Leader),
		fmt.Sprintf("link set %s up", outside),
	)
	c.Run(t, "ip", "link", "set", inside, "up")
}

// output collects what a process prints while others read it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// cgroupPrefix and the process id begin the names of our cgroups, so that those
// of killed runs can be told.
const cgroupPrefix = "vpt-"

// hierarchies are where systemd's cgroups are: one mount, or on machines of the
// older kind two.
func hierarchies() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	return slices.DeleteFunc([]string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"}, func(dir string) bool {
		_, err := os.Stat(dir)
		return err != nil
	})
}

// makeCgroups gives the container cgroups of its own: nspawn would otherwise
// work in ours, which two containers cannot share.
func makeCgroups(t testing.TB, name string) []string {
	t.Helper()
	var made []string
	for _, dir := range hierarchies() {
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatalf("cannot make a cgroup for the container: %v", err)
		}
		made = append(made, dir)
	}
	return made
}

func removeCgroups() {
	for _, dir := range hierarchies() {
		found, _ := filepath.Glob(filepath.Join(dir, cgroupPrefix+"*-*"))
		for _, dir := range found {
			name := filepath.Base(dir)
			pid, _, _ := strings.Cut(strings.TrimPrefix(name, cgroupPrefix), "-")
			if n, err := strconv.Atoi(pid); err == nil && n > 0 && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
				_ = removeCgroup(name)
			}
		}
	}
}

// removeCgroup removes a container's cgroups, the innermost first.
func removeCgroup(name string) error {
	var failed error
	for _, dir := range hierarchies() {
		var inside []string
		_ = filepath.WalkDir(filepath.Join(dir, name), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				inside = append(inside, path)
			}
			return nil
		})
		for _, path := range slices.Backward(inside) {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				failed = err
			}
		}
	}
	return failed
}
