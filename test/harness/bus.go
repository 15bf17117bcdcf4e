package harness

import (
	"bytes"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// BusPolicy is what the bus lets its clients do.
type BusPolicy int

const (
	// OpenPolicy lets everybody own any name and send anything.
	OpenPolicy BusPolicy = iota

	// ShippedPolicy is a distribution's default, own and calls denied, with the
	// project's own policy file, which lets root own our name.
	ShippedPolicy
)

// BusOptions are all optional.
type BusOptions struct {
	Policy BusPolicy

	// ServiceDir holds .service files of programs that the bus starts.
	ServiceDir string

	// PolicyFiles are included after the policy.
	PolicyFiles []string
}

// Bus is a private system bus. Its address does not change when it is
// restarted.
type Bus struct {
	// Address is good for every process on the machine. On a NewHost the bus is
	// also where programs look for the system bus.
	Address string

	ns      *Namespace
	config  string
	sockets []string
	process *Process
}

// StartBus starts a dbus-daemon in the namespace and waits until it listens.
func StartBus(t testing.TB, ns *Namespace, opts BusOptions) *Bus {
	t.Helper()
	Require(t, "dbus-daemon")
	dir := TempDir(t)
	socket := filepath.Join(dir, "bus")
	b := &Bus{Address: "unix:path=" + socket, ns: ns, config: filepath.Join(dir, "bus.conf"), sockets: []string{socket}}
	if ns.host {
		b.sockets = append(b.sockets, "/run/dbus/system_bus_socket")
	}
	if err := os.WriteFile(b.config, []byte(busConfig(t, b.sockets, opts)), 0o644); err != nil {
		t.Fatal(err)
	}
	b.Start(t)
	return b
}

// Start starts the bus again after Kill.
func (b *Bus) Start(t testing.TB) {
	t.Helper()
	b.process = b.ns.Start(t, Command{Argv: []string{"dbus-daemon", "--config-file=" + b.config, "--nofork", "--nopidfile", "--nosyslog", "--print-address"}})
	b.process.Await(t, `(?m)^unix:path=`)
}

// Kill ends the bus; its clients lose their connections.
func (b *Bus) Kill(t testing.TB) {
	t.Helper()
	b.process.Kill()
	err := b.ns.Do(func() error {
		for _, socket := range b.sockets {
			if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Process is the dbus-daemon, for its id and what it said.
func (b *Bus) Process() *Process { return b.process }

// Dial connects as root. The connection is closed when the test ends.
func (b *Bus) Dial(t testing.TB) *godbus.Conn {
	t.Helper()
	return b.DialAs(t, 0)
}

// DialAs connects as the user, with the group of the same number and no
// others; the bus learns that from the kernel. The connection is closed when
// the test ends.
func (b *Bus) DialAs(t testing.TB, uid uint32) *godbus.Conn {
	t.Helper()
	type result struct {
		conn *godbus.Conn
		err  error
	}
	dialed := make(chan result)
	// The kernel notes the credentials at the moment of connect(2).
	ownThread(func() {
		if err := becomeUser(uid); err != nil {
			dialed <- result{nil, err}
			return
		}
		conn, err := godbus.Dial(b.Address, godbus.WithAuth(godbus.AuthExternal(strconv.Itoa(int(uid)))))
		dialed <- result{conn, err}
	})
	r := <-dialed
	if r.err != nil {
		t.Fatalf("cannot connect to the bus: %v", r.err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	if err := r.conn.Auth(nil); err != nil {
		t.Fatalf("the bus refused uid %d: %v", uid, err)
	}
	if err := r.conn.Hello(); err != nil {
		t.Fatalf("the bus refused uid %d: %v", uid, err)
	}
	return r.conn
}

// DialRaw connects as the user, authenticates and says hello, and leaves the
// rest to the test: it can send what no library would, as fast as the bus takes
// it. The connection is closed when the test ends.
func (b *Bus) DialRaw(t testing.TB, uid uint32) *net.UnixConn {
	t.Helper()
	type result struct {
		conn *net.UnixConn
		err  error
	}
	dialed := make(chan result)
	ownThread(func() {
		err := becomeUser(uid)
		if err != nil {
			dialed <- result{nil, err}
			return
		}
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: strings.TrimPrefix(b.Address, "unix:path="), Net: "unix"})
		dialed <- result{conn, err}
	})
	r := <-dialed
	if r.err != nil {
		t.Fatalf("cannot connect to the bus: %v", r.err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	for _, line := range []string{fmt.Sprintf("\x00AUTH EXTERNAL %x\r\n", strconv.Itoa(int(uid))), "NEGOTIATE_UNIX_FD\r\n"} {
		_, err := r.conn.Write([]byte(line))
		if err == nil {
			_, err = r.conn.Read(make([]byte, 256))
		}
		if err != nil {
			t.Fatalf("the bus refused uid %d: %v", uid, err)
		}
	}
	hello := &godbus.Message{Type: godbus.TypeMethodCall, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant("org.freedesktop.DBus"),
		godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath("/org/freedesktop/DBus")),
		godbus.FieldInterface:   godbus.MakeVariant("org.freedesktop.DBus"),
		godbus.FieldMember:      godbus.MakeVariant("Hello"),
	}}
	_, err := r.conn.Write(append([]byte("BEGIN\r\n"), Encode(t, hello, 1)...))
	if err == nil {
		// What came with these lines would lose its descriptors.
		_, err = r.conn.Read(make([]byte, 4096))
	}
	if err != nil {
		t.Fatalf("the bus refused uid %d: %v", uid, err)
	}
	return r.conn
}

// Encode is the message with that number, as it is sent.
func Encode(t testing.TB, m *godbus.Message, serial uint32) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := m.EncodeTo(&buf, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(buf.Bytes()[8:], serial)
	return buf.Bytes()
}

// becomeUser changes the credentials of this thread alone, which the functions
// of package unix would change for the whole process.
func becomeUser(uid uint32) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("cannot drop the groups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
		return fmt.Errorf("cannot change the group: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
		return fmt.Errorf("cannot change the user: %w", errno)
	}
	return nil
}

func busConfig(t testing.TB, sockets []string, opts BusOptions) string {
	t.Helper()
	var b strings.Builder
	element := func(name, text string) {
		b.WriteString("  <" + name + ">")
		if err := xml.EscapeText(&b, []byte(text)); err != nil {
			t.Fatal(err)
		}
		b.WriteString("</" + name + ">\n")
	}
	b.WriteString(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <auth>EXTERNAL</auth>
`)
	for _, socket := range sockets {
		element("listen", "unix:path="+socket)
	}
	if opts.ServiceDir != "" {
		element("servicedir", opts.ServiceDir)
	}
	switch opts.Policy {
	case OpenPolicy:
		b.WriteString(openPolicy)
	case ShippedPolicy:
		b.WriteString(distributionPolicy)
		element("include", filepath.Join(ModuleRoot(t), "dbus-policy", "org.vpnprovider1.conf"))
	}
	for _, file := range opts.PolicyFiles {
		element("include", file)
	}
	b.WriteString("</busconfig>\n")
	return b.String()
}

const openPolicy = `  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
  <policy user="root"><allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/></policy>
`

// distributionPolicy denies what a system bus denies before any service's
// policy file is read.
const distributionPolicy = `  <policy context="default">
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
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus" send_member="UpdateActivationEnvironment"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Debug.Stats"/>
  </policy>
  <policy user="root"><allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/></policy>
`
