package container_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

type dict = map[string]godbus.Variant

// user is a process in the container, with connections to the system bus that
// the test uses in its place.
type user struct {
	name    string
	session string // empty: none
	pid     uint32
	started uint64
	conns   []*godbus.Conn
}

// seated, remote and sessionless are how a user's process is started: at the
// screen, as by ssh, and as by cron.
func seated(name string) container.Command { return container.Command{User: name, Seat: true} }
func remote(name string) container.Command { return container.Command{User: name} }
func sessionless(name string) container.Command {
	return container.Command{Unit: true, Argv: []string{"setpriv", "--reuid=" + name, "--regid=" + name, "--init-groups", "--"}}
}

// user starts a process of the user with so many connections.
func (m *machine) user(name string, how container.Command, connections int) *user {
	m.t.Helper()
	inside := fmt.Sprintf("/run/user-%s-%d", name, time.Now().UnixNano())
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.Root() + inside, Net: "unix"})
	if err == nil {
		defer listener.Close()
		err = errors.Join(os.Chmod(m.Root()+inside, 0o666), listener.SetDeadline(time.Now().Add(harness.Timeout)))
	}
	if err != nil {
		m.t.Fatal(err)
	}
	how.Argv = append(how.Argv, "/opt/testuser", inside, strconv.Itoa(connections))
	m.Start(m.t, how)
	control, err := listener.AcceptUnix()
	if err != nil {
		m.t.Fatalf("%s's process: %v", name, err)
	}
	m.t.Cleanup(func() { control.Close() })
	text, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4*connections))
	n, oobn, _, _, err := control.ReadMsgUnix(text, oob)
	if err != nil {
		m.t.Fatal(err)
	}
	u := &user{name: name}
	if _, err := fmt.Sscan(string(text[:n]), &u.pid, &u.started); err != nil {
		m.t.Fatalf("%q: %v", text[:n], err)
	}
	if fields := strings.Fields(string(text[:n])); len(fields) == 3 {
		u.session = fields[2]
	}
	uid := strings.TrimSpace(m.Run(m.t, "id", "-u", name))
	for _, fd := range rights(m.t, oob[:oobn]) {
		u.conns = append(u.conns, m.dialThrough(fd, uid))
	}
	if len(u.conns) != connections {
		m.t.Fatalf("%s has %d connections, want %d", name, len(u.conns), connections)
	}
	return u
}

func rights(t testing.TB, oob []byte) (fds []int) {
	t.Helper()
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range messages {
		some, err := unix.ParseUnixRights(&message)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, some...)
	}
	return fds
}

// dialThrough makes a connection out of a socket that somebody else connected.
// godbus passes descriptors only over those that it dialed itself, so there is
// a relay between.
func (m *machine) dialThrough(fd int, uid string) *godbus.Conn {
	m.t.Helper()
	f := os.NewFile(uintptr(fd), "bus")
	theirs, err := net.FileConn(f)
	f.Close()
	if err != nil {
		m.t.Fatal(err)
	}
	path := filepath.Join(harness.TempDir(m.t), "bus")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		m.t.Fatal(err)
	}
	defer listener.Close()
	conn, err := godbus.Dial("unix:path="+path, godbus.WithAuth(godbus.AuthExternal(uid)))
	if err != nil {
		m.t.Fatal(err)
	}
	ours, err := listener.AcceptUnix()
	if err != nil {
		m.t.Fatal(err)
	}
	go relay(ours, theirs.(*net.UnixConn))
	go relay(theirs.(*net.UnixConn), ours)
	m.t.Cleanup(func() { conn.Close() })
	if err := errors.Join(conn.Auth(nil), conn.Hello()); err != nil {
		m.t.Fatal(err)
	}
	return conn
}

// relay copies bytes and descriptors until one end is closed, and closes both.
func relay(to, from *net.UnixConn) {
	defer to.Close()
	defer from.Close()
	text, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*16))
	for {
		n, oobn, _, _, err := from.ReadMsgUnix(text, oob)
		if n == 0 || err != nil {
			return
		}
		_, _, err = to.WriteMsgUnix(text[:n], oob[:oobn], nil)
		if messages, parseErr := unix.ParseSocketControlMessage(oob[:oobn]); parseErr == nil {
			for _, message := range messages {
				fds, _ := unix.ParseUnixRights(&message)
				for _, fd := range fds {
					_ = unix.Close(fd)
				}
			}
		}
		if err != nil {
			return
		}
	}
}

// begin calls a method of ours; interactively: polkit may ask a person.
func begin(conn *godbus.Conn, interactively bool, path godbus.ObjectPath, iface, member string, args ...any) <-chan *godbus.Call {
	var flags godbus.Flags
	if interactively {
		flags = godbus.FlagAllowInteractiveAuthorization
	}
	message := &godbus.Message{
		Type: godbus.TypeMethodCall, Flags: flags, Body: args,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(wire.BusName),
			godbus.FieldPath:        godbus.MakeVariant(path),
			godbus.FieldInterface:   godbus.MakeVariant(iface),
			godbus.FieldMember:      godbus.MakeVariant(member),
			godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf(args...)),
		},
	}
	return conn.Send(message, make(chan *godbus.Call, 1)).Done
}

// call is begin, with the answer. It is late after a minute.
func call(t testing.TB, conn *godbus.Conn, interactively bool, path godbus.ObjectPath, iface, member string, args ...any) *godbus.Call {
	t.Helper()
	select {
	case c := <-begin(conn, interactively, path, iface, member, args...):
		return c
	case <-time.After(time.Minute):
		t.Fatalf("%s is not answered", member)
		return nil
	}
}

// must is call for what has to succeed.
func must(t testing.TB, conn *godbus.Conn, path godbus.ObjectPath, iface, member string, args ...any) []any {
	t.Helper()
	c := call(t, conn, false, path, iface, member, args...)
	if c.Err != nil {
		t.Fatalf("%s: %v", member, c.Err)
	}
	return c.Body
}

func errorName(err error) string {
	e, ok := errors.AsType[godbus.Error](err)
	switch {
	case err == nil:
		return "ok"
	case !ok:
		return err.Error()
	}
	return e.Name[strings.LastIndexByte(e.Name, '.')+1:]
}

const (
	polkitName = "org.freedesktop.PolicyKit1"
	agentPath  = "/org/vpnprovider1/test/agent"
	agentName  = polkitName + ".AuthenticationAgent"
	helper     = "/usr/lib/polkit-1/polkit-agent-helper-1"
)

// agent answers polkit's questions about one process, as a desktop's does.
type agent struct {
	m *machine
	// answer is how it answers, by action: a password, "cancel", or "never". It
	// gets the users who could answer.
	answer func(action string, identities []string) (user, password string)

	asked     chan string // actions, and the text of each
	cancelled chan string // cookies
}

const (
	cancels = "\x00cancel"
	never   = "\x00never"
)

// agent makes the user's first connection the agent of its process.
func (m *machine) agent(u *user, answer func(action string, identities []string) (user, password string)) *agent {
	m.t.Helper()
	a := &agent{m: m, answer: answer, asked: make(chan string, 100), cancelled: make(chan string, 100)}
	conn := u.conns[0]
	if err := conn.Export(a, agentPath, agentName); err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), harness.Timeout)
	defer cancel()
	err := conn.Object(polkitName, "/org/freedesktop/PolicyKit1/Authority").CallWithContext(ctx, polkitName+".Authority.RegisterAuthenticationAgent", 0,
		identity{"unix-process", dict{"pid": godbus.MakeVariant(u.pid), "start-time": godbus.MakeVariant(u.started)}}, "C", agentPath).Err
	if err != nil {
		m.t.Fatalf("cannot register %s's agent: %v", u.name, err)
	}
	return a
}

type identity struct {
	Kind    string
	Details dict
}

// BeginAuthentication is polkit's.
func (a *agent) BeginAuthentication(action, message, _ string, _ map[string]string, cookie string, identities []identity) *godbus.Error {
	var users []string
	for _, i := range identities {
		uid, _ := i.Details["uid"].Value().(uint32)
		name, _ := a.m.Output(container.Command{Argv: []string{"id", "-nu", strconv.Itoa(int(uid))}})
		users = append(users, strings.TrimSpace(name))
	}
	a.asked <- strings.TrimPrefix(action, "org.vpnprovider1.") + ": " + message
	user, password := a.answer(action, users)
	switch password {
	case cancels:
		return godbus.NewError(polkitName+".Error.Cancelled", []any{"cancelled"})
	case never:
		select {} // until the test's process ends
	}
	// The helper asks PAM, as root, and tells polkit of the outcome itself.
	out, err := a.m.Output(container.Command{
		Argv:  []string{"setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "--", helper, user},
		Stdin: cookie + "\n" + password + "\n",
	})
	if err != nil {
		return godbus.NewError(polkitName+".Error.Failed", []any{out})
	}
	return nil
}

// CancelAuthentication is polkit's.
func (a *agent) CancelAuthentication(cookie string) *godbus.Error {
	a.cancelled <- cookie
	return nil
}

// questions takes what was asked so far: the actions.
func (a *agent) questions() (actions []string) {
	for {
		select {
		case q := <-a.asked:
			action, _, _ := strings.Cut(q, ":")
			actions = append(actions, action)
		default:
			return actions
		}
	}
}
