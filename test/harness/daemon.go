package harness

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// DaemonOptions are all optional.
type DaemonOptions struct {
	// Args are added to the arguments; the last of two equal flags counts.
	Args []string

	// Program is used instead of vpnproviderd, for tests of the harness.
	Program string

	Env []string
}

// Daemon is a vpnproviderd in a host's namespace, with directories of its own
// that outlive it, so it can be started again on what it left.
type Daemon struct {
	// StateDir, RuntimeDir and ConfigDir are the daemon's, as any process sees
	// them. A test may write files into them.
	StateDir, RuntimeDir, ConfigDir string

	// ResolvConf is the file it manages, as the host sees it: the one that
	// programs there resolve names with.
	ResolvConf string

	host    *Namespace
	program string
	args    []string
	env     []string
	process *Process

	mu       sync.Mutex
	notified []string // assignments of sd_notify(3), since the last start
}

// NewDaemon prepares a daemon on the host and the bus: owner authorisation, DNS
// through /etc/resolv.conf, no call rate. Start starts it.
func NewDaemon(t testing.TB, host *Namespace, bus *Bus, opts DaemonOptions) *Daemon {
	t.Helper()
	dir := TempDir(t)
	d := &Daemon{
		StateDir:   filepath.Join(dir, "state"),
		RuntimeDir: filepath.Join(dir, "run"),
		ConfigDir:  filepath.Join(dir, "etc"),
		ResolvConf: "/etc/resolv.conf",
		host:       host,
		program:    opts.Program,
	}
	for _, dir := range []string{d.StateDir, d.RuntimeDir, d.ConfigDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if d.program == "" {
		d.program = Binary(t, "vpnproviderd")
	}
	d.args = append([]string{
		"--bus", bus.Address,
		"--state-dir", d.StateDir,
		"--runtime-dir", d.RuntimeDir,
		"--config-dir", d.ConfigDir,
		"--authorization", "owner",
		"--resolver", "file",
		"--resolv-conf", d.ResolvConf,
		"--call-rate", "0",
	}, opts.Args...)
	socket := filepath.Join(dir, "notify")
	d.env = append([]string{"NOTIFY_SOCKET=" + socket}, opts.Env...)
	d.listen(t, socket)
	return d
}

// StartDaemon is NewDaemon and Start.
func StartDaemon(t testing.TB, host *Namespace, bus *Bus, opts DaemonOptions) *Daemon {
	t.Helper()
	d := NewDaemon(t, host, bus, opts)
	d.Start(t)
	return d
}

// Start starts the daemon and waits until it says that it is ready.
func (d *Daemon) Start(t testing.TB) {
	t.Helper()
	d.mu.Lock()
	d.notified = nil
	d.mu.Unlock()
	d.process = d.host.Start(t, Command{Argv: d.Command(), Env: d.env})
	Eventually(t, Timeout, "the daemon is ready", func() error {
		if slices.Contains(d.Notified(), "READY=1") {
			return nil
		}
		select {
		case <-d.process.exited:
			t.Fatalf("the daemon ended (%v) before it was ready:\n%s", d.process.err, d.process.Output())
		default:
		}
		return errors.New("no READY=1 so far")
	})
}

// Process is the daemon that was started last, for its id and its log.
func (d *Daemon) Process() *Process { return d.process }

// Kill9 ends the daemon without a chance to tidy up.
func (d *Daemon) Kill9() { d.process.Kill() }

// Stop asks the daemon to end, and ends the test unless it does so with
// success.
func (d *Daemon) Stop(t testing.TB) {
	t.Helper()
	d.process.Signal(unix.SIGTERM)
	if err := d.process.Wait(t); err != nil {
		t.Fatalf("the daemon ended with %v:\n%s", err, d.process.Output())
	}
}

// Command is the daemon's program with its arguments, and more of them.
func (d *Daemon) Command(more ...string) []string {
	return slices.Concat([]string{d.program}, d.args, more)
}

// Cleanup runs the daemon's program with --cleanup and returns what it said.
func (d *Daemon) Cleanup(t testing.TB) string {
	t.Helper()
	return d.host.Run(t, d.Command("--cleanup")...)
}

// Notified returns the assignments that the daemon has sent with sd_notify(3)
// since it was started.
func (d *Daemon) Notified() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.notified)
}

func (d *Daemon) listen(t testing.TB, socket string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o777); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.read(conn)
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
}

// read notes what is sent until the socket is closed. Descriptors that come
// along (FDSTORE=1) are closed, as by a service manager without a store; a
// BARRIER=1 is answered by that.
func (d *Daemon) read(conn *net.UnixConn) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*253))
	for {
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		closeDescriptors(oob[:oobn])
		d.mu.Lock()
		d.notified = append(d.notified, strings.Split(strings.TrimSpace(string(buf[:n])), "\n")...)
		d.mu.Unlock()
	}
}

func closeDescriptors(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials, say
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}
