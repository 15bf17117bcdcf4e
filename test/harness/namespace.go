package harness

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Users that exist on a host made by NewHost, with a group of the same number
// each, no privilege and no password.
const (
	Alice = 4201
	Bob   = 4202
)

// Namespace is a network namespace, and for a host also a view of the file
// system: /etc is an overlay and /run is empty, so that what runs there has a
// resolv.conf, a system bus and users of its own. Both live on one thread of
// the test process. Its methods may be called from several goroutines; what
// they run on the thread runs one after the other.
type Namespace struct {
	name  string
	calls chan func()
	dead  chan struct{} // closed when the thread is gone
	tid   int
	host  bool
}

var errNamespaceGone = errors.New("the namespace is gone")

// NewNamespace makes a network namespace with its loopback up, for routers and
// servers. The name is for messages.
func NewNamespace(t testing.TB, name string) *Namespace {
	t.Helper()
	return newNamespace(t, name, false)
}

// NewHost makes a network namespace with its own /etc, /run and /sys.
func NewHost(t testing.TB, name string) *Namespace {
	t.Helper()
	return newNamespace(t, name, true)
}

func newNamespace(t testing.TB, name string, host bool) *Namespace {
	t.Helper()
	Require(t, "ip")
	n := &Namespace{name: name, host: host, calls: make(chan func()), dead: make(chan struct{})}
	ready := make(chan error)
	ownThread(func() { n.run(ready) })
	if err := <-ready; err != nil {
		t.Fatalf("cannot make the namespace %s: %v", name, err)
	}
	t.Cleanup(func() { n.close(t) })
	// No duplicate address detection: it would be a second of waiting for each
	// link, and a state that a snapshot must not see.
	n.Sysctl(t, "net.ipv6.conf.default.accept_dad", "0")
	n.Sysctl(t, "net.ipv6.conf.all.accept_dad", "0")
	n.IP(t, "link set lo up")
	return n
}

// ownThread runs f on a thread of its own, which nobody else gets and which ends
// with f, and with it what f changed about it.
func ownThread(f func()) {
	go func() {
		runtime.LockOSThread() // never unlocked: so the thread ends with the goroutine
		if unix.Gettid() != os.Getpid() {
			f()
			return
		}
		// The process's first thread cannot end: it is held until another has f.
		started := make(chan struct{})
		ownThread(func() {
			close(started)
			f()
		})
		<-started
		runtime.UnlockOSThread()
	}()
}

// run is the namespace's thread.
func (n *Namespace) run(ready chan<- error) {
	defer close(n.dead)
	n.tid = unix.Gettid()
	err := n.enter()
	ready <- err
	if err != nil {
		return
	}
	for f := range n.calls {
		f()
	}
}

func (n *Namespace) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("cannot unshare the network: %w", err)
	}
	if !n.host {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot unshare the mounts: %w", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make the mounts private: %w", err)
	}
	if err := mountRun(); err != nil {
		return err
	}
	// The /sys that shows this namespace's links.
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("cannot mount /sys: %w", err)
	}
	return writeEtc()
}

func mountRun() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("cannot mount /run: %w", err)
	}
	for _, dir := range []string{"/run/.etc/upper", "/run/.etc/work", "/run/dbus"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	err := unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/run/.etc/upper,workdir=/run/.etc/work")
	if err != nil {
		return fmt.Errorf("cannot mount an overlay on /etc: %w", err)
	}
	return nil
}

// writeEtc gives the host its users and a plain name resolution, whatever the
// machine's is.
func writeEtc() error {
	if err := os.Remove("/etc/resolv.conf"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	files := map[string]string{
		"/etc/resolv.conf":   "nameserver " + InternetDNS + "\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
		"/etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	}
	for name, content := range files {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	users := fmt.Sprintf("alice:x:%d:%[1]d::/nonexistent:/bin/sh\nbob:x:%d:%[2]d::/nonexistent:/bin/sh\n", Alice, Bob)
	groups := fmt.Sprintf("alice:x:%d:\nbob:x:%d:\n", Alice, Bob)
	return errors.Join(appendFile("/etc/passwd", users), appendFile("/etc/group", groups))
}

func appendFile(name, text string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// Path names the network namespace for `nsenter --net=PATH`, `ip ... netns PATH`
// and setns(2).
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), n.tid)
}

// Root is the host's file system as the test process sees it: Root()+"/etc/x"
// is the host's /etc/x.
func (n *Namespace) Root() string {
	return fmt.Sprintf("/proc/%d/task/%d/root", os.Getpid(), n.tid)
}

// Do runs f on the namespace's thread and returns its error. Sockets and files
// that f opens are the namespace's, wherever they are used afterwards. f must
// not start goroutines that open more, nor end the test.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	select {
	case n.calls <- func() { done <- f() }:
	case <-n.dead:
		return errNamespaceGone
	}
	select {
	case err := <-done:
		return err
	case <-n.dead:
		return errNamespaceGone
	}
}

// Run runs a program as root, and returns what it printed. It ends the test
// when the program fails.
func (n *Namespace) Run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := n.Output(t, Command{Argv: argv})
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", n.name, strings.Join(argv, " "), err, out)
	}
	return out
}

// Output runs a command to its end and returns what it printed on both
// outputs.
func (n *Namespace) Output(t testing.TB, c Command) (string, error) {
	t.Helper()
	p, err := n.start(c)
	if err != nil {
		return "", err
	}
	select {
	case <-p.exited:
	case <-time.After(3 * Timeout):
		_ = p.cmd.Process.Kill()
		<-p.exited
		return p.Output(), fmt.Errorf("not finished within %v", 3*Timeout)
	}
	return p.Output(), p.err
}

// IP runs iproute2 commands, one each line: "addr add 10.0.0.1/24 dev x0".
func (n *Namespace) IP(t testing.TB, lines ...string) {
	t.Helper()
	out, err := n.Output(t, Command{Argv: []string{"ip", "-batch", "-"}, Stdin: strings.Join(lines, "\n") + "\n"})
	if err != nil {
		t.Fatalf("%s: ip: %v\n%s\n%s", n.name, err, out, strings.Join(lines, "\n"))
	}
}

// Sysctl sets one, dotted as in sysctl(8); a slash stands for itself in the
// name of an interface that holds a dot.
func (n *Namespace) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	if err := n.Do(func() error { return os.WriteFile(path, []byte(value), 0o644) }); err != nil {
		t.Fatalf("%s: %v", n.name, err)
	}
}

// ReadFile reads a file as the namespace's processes see it.
func (n *Namespace) ReadFile(t testing.TB, name string) string {
	t.Helper()
	var content []byte
	err := n.Do(func() (err error) {
		content, err = os.ReadFile(name)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", n.name, err)
	}
	return string(content)
}

// Listen listens in the namespace until the test ends; network and address are
// net.Listen's, the address numeric.
func (n *Namespace) Listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", n.name, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// ListenPacket is Listen for datagrams.
func (n *Namespace) ListenPacket(t testing.TB, network, address string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	err := n.Do(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", n.name, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Dial connects from the namespace to a numeric address.
func (n *Namespace) Dial(network, address string, timeout time.Duration) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		d := net.Dialer{Timeout: timeout, FallbackDelay: -1}
		c, err = d.Dial(network, address)
		return err
	})
	return c, err
}

// Veth joins two namespaces with a pair of interfaces, both up.
func Veth(t testing.TB, a *Namespace, aName string, b *Namespace, bName string) {
	t.Helper()
	a.IP(
		t,
		fmt.Sprintf("link add %s type veth peer name %s netns %s", aName, bName, b.Path()),
		fmt.Sprintf("link set %s up", aName),
	)
	b.IP(t, fmt.Sprintf("link set %s up", bName))
}

// close ends what still runs in the namespace, then the thread.
func (n *Namespace) close(t testing.TB) {
	t.Helper()
	for _, pid := range n.processes() {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		t.Logf("%s: killing what was left running: %d %s", n.name, pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	close(n.calls)
	<-n.dead
}

// processes lists the processes in the network namespace, this one aside.
func (n *Namespace) processes() []int {
	mine, err := os.Readlink(n.Path())
	if err != nil {
		return nil
	}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	var pids []int
	for _, link := range links {
		if ns, err := os.Readlink(link); err != nil || ns != mine {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}
