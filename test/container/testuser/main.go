// Testuser connects to the system bus of a container for a test outside, which
// then speaks as a program in the login session that testuser was started in:
// bus and polkit go by who connected. It hands its connections over through a
// socket of the test's, with its process id, the start time and the session, and
// ends when the test closes that.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const bus = "/run/dbus/system_bus_socket"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "testuser:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: testuser SOCKET CONNECTIONS")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	test, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: args[0], Net: "unix"})
	if err != nil {
		return err
	}
	defer test.Close()
	started, err := startTime()
	if err != nil {
		return err
	}
	about := fmt.Sprintf("%d %s %s", os.Getpid(), started, os.Getenv("XDG_SESSION_ID"))
	if err := handOver(test, about, n); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, test)
	return err
}

// handOver keeps none of the connections: the test is to close them.
func handOver(test *net.UnixConn, about string, n int) error {
	var fds []int
	for range n {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: bus, Net: "unix"})
		if err != nil {
			return err
		}
		defer conn.Close()
		f, err := conn.File()
		if err != nil {
			return err
		}
		defer f.Close()
		fds = append(fds, int(f.Fd()))
	}
	_, _, err := test.WriteMsgUnix([]byte(about), unix.UnixRights(fds...), nil)
	return err
}

// startTime is the kernel's, by which polkit tells processes of one number.
func startTime() (string, error) {
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	const at = 22 - 3 // after the number and the name
	if len(fields) <= at {
		return "", fmt.Errorf("/proc/self/stat has %d fields", len(fields))
	}
	return fields[at], nil
}
