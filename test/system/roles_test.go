package system

import (
	"fmt"
	"os"
	"os/exec"
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

	roleClient = "client" // a VPN client
	roleParent = "parent" // one that gives its channel to a child, too
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
		err = unix.Pause()
	case roleClient, roleParent:
		err = beClient(role == roleParent)
	}
	fmt.Println(role, err)
	os.Exit(1)
}

// beClient registers, says `registered`, and configures each session that
// begins, says `configured` and reads its packets.
func beClient(parent bool) error {
	conn, err := godbus.Connect(os.Getenv(busVariable))
	if err != nil {
		return err
	}
	signals := make(chan *godbus.Signal, 100)
	conn.Signal(signals)
	manager := conn.Object(wire.BusName, wire.RootPath)
	if err := manager.Call(wire.ManagerInterface+".RegisterProvider", 0, app, dict{}).Err; err != nil {
		return err
	}
	fmt.Println("registered")
	for s := range signals {
		if strings.HasSuffix(s.Name, ".PlatformMessage") && s.Body[1] == wire.MessageConnected {
			if err := serveSession(conn.Object(wire.BusName, s.Path), parent); err != nil {
				return err
			}
		}
	}
	return conn.Context().Err()
}

func serveSession(session godbus.BusObject, parent bool) error {
	var fd godbus.UnixFD
	var info dict
	if err := session.Call(wire.SessionInterface+".OpenPacketChannel", 0, dict{}).Store(&fd, &info); err != nil {
		return err
	}
	channel := os.NewFile(uintptr(fd), "channel")
	if parent {
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), roleVariable+"="+roleChild)
		child.ExtraFiles = []*os.File{channel}
		if err := child.Start(); err != nil {
			return err
		}
		fmt.Println("child", child.Process.Pid)
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
