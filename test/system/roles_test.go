package system

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Environment variables that make the test's program another one.
const (
	roleVariable = "VPNPROVIDER_TEST_ROLE"
	busVariable  = "VPNPROVIDER_TEST_BUS"

	// Where it is set, a child tells what happens to it on descriptor 3 of its
	// parent, which the parent's end does not close.
	reportVariable = "VPNPROVIDER_TEST_REPORT"

	roleClient = "client" // a VPN client
	roleParent = "parent" // one that gives its channel to a child, too
	roleForked = "forked" // one whose child has all that it has, as after fork(2)
	roleChild  = "child"  // such a child: it holds what it was given
)

// startRole starts the test's program in a role, as an unprivileged user.
func (m *machine) startRole(t testing.TB, role string, uid uint32) *harness.Process {
	t.Helper()
	return m.Host.Start(t, harness.Command{
		// Other users cannot enter the folder in which the program is.
		Argv: []string{"/proc/self/exe"}, UID: uid,
		Env: []string{roleVariable + "=" + role, busVariable + "=" + m.bus.Address},
	})
}

func play(role string) {
	var err error
	switch role {
	case roleChild:
		err = beChild()
	case roleClient, roleParent, roleForked:
		err = beClient(role)
	}
	fmt.Println(role, err)
	os.Exit(1)
}

// beClient registers, says `registered NAME`, and configures each session that
// begins, says `configured` and reads its packets. SIGUSR1 makes it leave the
// bus, and live.
func beClient(role string) error {
	conn, err := godbus.Connect(os.Getenv(busVariable))
	if err != nil {
		return err
	}
	leave := make(chan os.Signal, 1)
	signal.Notify(leave, unix.SIGUSR1)
	signals := make(chan *godbus.Signal, 100)
	conn.Signal(signals)
	manager := conn.Object(wire.BusName, wire.RootPath)
	if err := manager.Call(wire.ManagerInterface+".RegisterProvider", 0, app, dict{}).Err; err != nil {
		return err
	}
	fmt.Println("registered", conn.Names()[0])
	for {
		select {
		case <-leave:
			conn.Close()
			select {}
		case s, ok := <-signals:
			if !ok {
				return conn.Context().Err()
			}
			if strings.HasSuffix(s.Name, ".PlatformMessage") && s.Body[1] == wire.MessageConnected {
				if err := serveSession(conn.Object(wire.BusName, s.Path), role); err != nil {
					return err
				}
			}
		}
	}
}

// beChild holds what it got. SIGUSR1 makes it register as its parent did, on
// the connection that it has as descriptor 3 from a roleForked.
func beChild() error {
	register := make(chan os.Signal, 1)
	signal.Notify(register, unix.SIGUSR1)
	<-register
	connection, err := net.FileConn(os.NewFile(3, "connection"))
	if err != nil {
		return err
	}
	// A number that the parent did not use, and nothing else is ours to say.
	message := &godbus.Message{
		Type: godbus.TypeMethodCall, Body: []any{app, dict{}},
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(wire.BusName),
			godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath(wire.RootPath)),
			godbus.FieldInterface:   godbus.MakeVariant(wire.ManagerInterface),
			godbus.FieldMember:      godbus.MakeVariant("RegisterProvider"),
			godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf("", dict{})),
		},
	}
	var b bytes.Buffer
	if err := message.EncodeTo(&b, binary.LittleEndian); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(b.Bytes()[8:], 1<<20)
	if _, err := connection.Write(b.Bytes()); err != nil {
		return err
	}
	for {
		m, err := godbus.DecodeMessage(connection)
		if err != nil {
			return err
		}
		if m.Type == godbus.TypeError {
			fmt.Println(m.Headers[godbus.FieldErrorName], m.Body)
		}
	}
}

// sockets are those of this process, the connection to the bus first.
func sockets() (files []*os.File, err error) {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	for _, entry := range list {
		name, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err != nil || !strings.HasPrefix(name, "socket:") {
			continue
		}
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			return nil, err
		}
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, err
		}
		files = append(files, os.NewFile(uintptr(own), name))
	}
	return files, nil
}

func startChild(files []*os.File) error {
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), roleVariable+"="+roleChild)
	child.ExtraFiles = files
	if os.Getenv(reportVariable) != "" {
		child.Stdout = os.NewFile(3, "report")
	}
	if err := child.Start(); err != nil {
		return err
	}
	fmt.Println("child", child.Process.Pid)
	return nil
}

func serveSession(session godbus.BusObject, role string) error {
	var fd godbus.UnixFD
	var info dict
	if err := session.Call(wire.SessionInterface+".OpenPacketChannel", 0, dict{}).Store(&fd, &info); err != nil {
		return err
	}
	channel := os.NewFile(uintptr(fd), "channel")
	files := []*os.File{channel}
	if role == roleForked {
		var err error
		if files, err = sockets(); err != nil {
			return err
		}
	}
	if role != roleClient {
		if err := startChild(files); err != nil {
			return err
		}
	}
	if err := session.Call(wire.SessionInterface+".SetParameters", 0, fullTunnel()).Err; err != nil {
		return err
	}
	if err := session.Call(wire.SessionInterface+".NotifyConnectionStateChanged", 0, wire.NotifyConnected, dict{}).Err; err != nil {
		return err
	}
	fmt.Println("configured")
	go (&endpoint{file: channel}).serve()
	return nil
}
