package openconnect

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The pair over which the script speaks with its grandparent has no name and
// is known to nobody but the programs that openconnect itself starts. One byte
// carries the descriptor, then comes the environment as one JSON object. The
// script ends when the other end is closed.

// maxHandover is more bytes than an environment can have.
const maxHandover = 8 << 20

// fdVariable has the number of the descriptor that openconnect passes packets
// over: AF_UNIX, SOCK_DGRAM, one raw IP packet a message.
const fdVariable = "VPNFD"

// Tunnel is what openconnect gave its script.
type Tunnel struct {
	Env map[string]string // the wanted variables

	// Packets is the caller's to close. It is the peer of openconnect's own
	// end, which reads and writes whole IP packets.
	Packets *os.File

	Err error // the handover failed; nothing else is set
}

// Script is the whole life of the script: it hands environ and the packet
// socket over the descriptor of that number, and returns when the other end is
// closed.
func Script(fd int, environ []string, wanted func(name string) bool) error {
	if err := script(fd, environ, wanted); err != nil {
		return fmt.Errorf("cannot hand the tunnel over: %w", err)
	}
	return nil
}

func script(fd int, environ []string, wanted func(name string) bool) error {
	conn, err := fileConn(os.NewFile(uintptr(fd), "handover"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := handOver(conn, environ, wanted); err != nil {
		_, _ = conn.Write([]byte{0}) // a byte without a descriptor: openconnect would not tell
		return err
	}
	_, err = io.Copy(io.Discard, conn) // until the end
	return err
}

func handOver(conn *net.UnixConn, environ []string, wanted func(name string) bool) (err error) {
	env := map[string]string{}
	packets := -1
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		switch {
		case name == fdVariable:
			if packets, err = strconv.Atoi(value); err != nil {
				return fmt.Errorf("%s is no number: %q", fdVariable, value)
			}
		case wanted(name):
			env[name] = value
		}
	}
	if packets < 0 {
		return fmt.Errorf("%s is missing: this is for openconnect --script-tun to start", fdVariable)
	}
	return send(conn, env, packets)
}

func send(conn *net.UnixConn, env map[string]string, packets int) error {
	text, err := json.Marshal(env)
	if err != nil {
		return err
	}
	if _, _, err := conn.WriteMsgUnix([]byte{0}, unix.UnixRights(packets), nil); err != nil {
		return err
	}
	_, err = conn.Write(text)
	if err == nil {
		err = conn.CloseWrite()
	}
	return err
}

// receive takes the handover. The connection stays the caller's.
func receive(conn *net.UnixConn, wanted func(name string) bool) (Tunnel, error) {
	packets, err := receivePackets(conn)
	var env map[string]string
	if err == nil {
		if err = json.NewDecoder(io.LimitReader(conn, maxHandover)).Decode(&env); err != nil {
			_ = packets.Close()
		}
	}
	if err != nil {
		return Tunnel{}, fmt.Errorf("cannot take the tunnel over from openconnect: %w", err)
	}
	for name := range env {
		if !wanted(name) {
			delete(env, name)
		}
	}
	return Tunnel{Env: env, Packets: packets}, nil
}

// receivePackets takes the packet socket and closes whatever else came.
func receivePackets(conn *net.UnixConn) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4*4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	messages, _ := unix.ParseSocketControlMessage(oob[:n])
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds { // close-on-exec already
			files = append(files, os.NewFile(uintptr(fd), "openconnect"))
		}
	}
	if len(files) == 1 && isDatagram(files[0]) {
		return files[0], nil
	}
	for _, f := range files {
		_ = f.Close()
	}
	return nil, errors.New("the script passed no packet socket")
}

func isDatagram(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	err = raw.Control(func(fd uintptr) {
		domain, err1 := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		kind, err2 := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
		ok = err1 == nil && err2 == nil && domain == unix.AF_UNIX && kind == unix.SOCK_DGRAM
	})
	return err == nil && ok
}

// fileConn is a connection on a copy of f's descriptor.
func fileConn(f *os.File) (*net.UnixConn, error) {
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		_ = conn.Close()
		return nil, errors.New("the descriptor is no socket of AF_UNIX")
	}
	return unixConn, nil
}
