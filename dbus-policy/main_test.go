// Package dbuspolicy tests the files beside it, unchanged, in the programs
// that read them: dbus-daemon and polkitd. The tests run as root in mount and
// process namespaces of their own, where the service's user exists and polkitd
// finds our files; the host's bus, users and polkit are not touched.
package dbuspolicy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// Users of the namespace. They need entries in passwd: dbus-daemon drops a
// policy for a user, and a client, that it does not find there.
const (
	serviceUser = "vpnprovider"
	serviceUID  = 64990
	aliceUID    = 64991
	bobUID      = 64992
)

const (
	insideVar    = "DBUSPOLICY_TEST_INSIDE"
	accessDenied = "org.freedesktop.DBus.Error.AccessDenied"
	timeout      = 20 * time.Second // generous: the machine may be loaded
)

func TestMain(m *testing.M) {
	if os.Getenv(insideVar) != "" {
		if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			fmt.Fprintln(os.Stderr, "cannot mount /proc:", err)
			os.Exit(1)
		}
	}
	if os.Getuid() != 0 || os.Getenv(insideVar) != "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.Env = append(os.Environ(), insideVar+"=1")
	// A process namespace too: whatever the tests started ends with them.
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	if err := child.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot make namespaces:", err)
		os.Exit(m.Run()) // what needs one skips or fails
	}
	err := child.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "cannot run the tests:", err)
		os.Exit(1)
	}
}

// needNamespace is for tests with a bus.
func needNamespace(t *testing.T, programs ...string) {
	t.Helper()
	missing := ""
	if os.Getenv(insideVar) == "" {
		missing = "root and namespaces"
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			missing = program
		}
	}
	switch {
	case missing == "":
	case os.Getenv("CI") != "":
		t.Fatalf("needs %s", missing)
	default:
		t.Skipf("needs %s", missing)
	}
}

// sharedDir is a temporary folder that every user may enter: the parent that
// testing makes is root's alone.
func sharedDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// bind puts source in place of target, in this namespace, until the test ends.
func bind(t *testing.T, source, target string) {
	t.Helper()
	if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
		t.Fatalf("cannot bind %s over %s: %v", source, target, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(target, syscall.MNT_DETACH); err != nil {
			t.Errorf("cannot unmount %s: %v", target, err)
		}
	})
}

// addUsers puts our users into the namespace's passwd.
func addUsers(t *testing.T) {
	t.Helper()
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(passwd)) {
		if !strings.HasPrefix(line, serviceUser+":") {
			text.WriteString(line)
		}
	}
	for name, uid := range map[string]int{serviceUser: serviceUID, "vpntest-alice": aliceUID, "vpntest-bob": bobUID} {
		fmt.Fprintf(&text, "%s:x:%d:65534::/nonexistent:/usr/sbin/nologin\n", name, uid)
	}
	path := filepath.Join(t.TempDir(), "passwd")
	writeFile(t, path, text.String())
	bind(t, path, "/etc/passwd")
}

// busConfig has the base policy of the system bus as the D-Bus distribution
// ships it.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
  <listen>unix:path=%s</listen>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
  </policy>
  %s
</busconfig>
`

// startBus runs a dbus-daemon with the stock policy and ours, and returns its
// address. extra are more policy files.
func startBus(t *testing.T, extra ...string) string {
	t.Helper()
	needNamespace(t, "dbus-daemon")
	addUsers(t)
	ours, err := filepath.Abs("org.vpnprovider1.conf")
	if err != nil {
		t.Fatal(err)
	}
	var includes strings.Builder
	for _, file := range append([]string{ours}, extra...) {
		fmt.Fprintf(&includes, "<include>%s</include>", file)
	}
	dir := sharedDir(t)
	socket, config := filepath.Join(dir, "bus"), filepath.Join(dir, "bus.conf")
	writeFile(t, config, fmt.Sprintf(busConfig, socket, includes.String()))
	start(t, exec.Command("dbus-daemon", "--config-file="+config, "--nofork", "--nopidfile", "--nosyslog"))
	waitFor(t, "the bus", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	return "unix:path=" + socket
}

// start runs a program until the test ends. What it says is shown when the
// test fails.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("cannot start %s: %v", cmd.Path, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", cmd.Path, said.String())
		}
	})
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(timeout); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, timeout)
		}
	}
}

// dial connects as a user. The bus knows him by the credentials that the
// thread had when it connected, so only a thread changes its identity, and is
// thrown away.
func dial(t *testing.T, address string, uid int) *godbus.Conn {
	t.Helper()
	type result struct {
		conn *godbus.Conn
		err  error
	}
	results := make(chan result)
	go func() {
		runtime.LockOSThread()
		const keep = ^uintptr(0)
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
			results <- result{nil, errno}
			return
		}
		conn, err := godbus.Dial(address)
		results <- result{conn, err}
	}()
	r := <-results
	if r.err != nil {
		t.Fatalf("cannot connect as %d: %v", uid, r.err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	if err := r.conn.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(uid))}); err != nil {
		t.Fatalf("cannot authenticate as %d: %v", uid, err)
	}
	if err := r.conn.Hello(); err != nil {
		t.Fatalf("cannot say hello as %d: %v", uid, err)
	}
	return r.conn
}

// call gives the error's name, "" for success.
func call(t *testing.T, conn *godbus.Conn, destination, method string, args ...any) string {
	t.Helper()
	return errorName(t, method, callObject(t, conn, destination, wire.RootPath, method, args...))
}

func callObject(t *testing.T, conn *godbus.Conn, destination, path, method string, args ...any) *godbus.Call {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return conn.Object(destination, godbus.ObjectPath(path)).CallWithContext(ctx, method, 0, args...)
}

func errorName(t *testing.T, method string, c *godbus.Call) string {
	t.Helper()
	if c.Err == nil {
		return ""
	}
	if e, ok := errors.AsType[godbus.Error](c.Err); ok {
		return e.Name
	}
	t.Fatalf("%s: %v", method, c.Err)
	return ""
}
