package openconnect

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary also be openconnect (as far as Process can
// tell), its script, and the parent that gets killed.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 2 && os.Args[1] == "-as-script":
		fd, err := strconv.Atoi(os.Args[2])
		if err == nil {
			err = Script(fd, os.Environ(), isWanted)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv("AS_OPENCONNECT") != "":
		os.Exit(fake(strings.Fields(os.Getenv("AS_OPENCONNECT"))))
	case os.Getenv("AS_PARENT") != "":
		asParent()
	default:
		os.Exit(m.Run())
	}
}

func isWanted(name string) bool { return strings.HasPrefix(name, "FAKE_") }

// fake does one thing after the other.
func fake(steps []string) int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR2)
	var end int
	for _, step := range steps {
		name, value, _ := strings.Cut(step, "=")
		switch name {
		case "print":
			fmt.Println(strings.ReplaceAll(value, "_", " "))
		case "error":
			fmt.Fprintln(os.Stderr, strings.ReplaceAll(value, "_", " "))
		case "prompt": // no line end, as openconnect asks
			fmt.Fprint(os.Stderr, "Password:")
			text, _ := bufio.NewReader(os.Stdin).ReadString('\n')
			fmt.Fprintf(os.Stderr, "\ngot %s", text)
		case "script":
			end = fakeScript(value)
		case "echo":
			buf := make([]byte, 2048)
			n, err := unix.Read(end, buf)
			if err != nil {
				return 90
			}
			if _, err := unix.Write(end, buf[:n]); err != nil {
				return 91
			}
		case "wait":
			got := <-signals
			fmt.Println("got", got)
		case "ignore":
			signal.Ignore(unix.SIGINT, unix.SIGTERM)
		case "sleep":
			time.Sleep(time.Hour)
		case "leave": // a program that outlives us and holds the output
			cmd := exec.Command("sleep", value)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			_ = cmd.Start()
		case "kill":
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		case "exit":
			code, _ := strconv.Atoi(value)
			return code
		}
	}
	return 0
}

// fakeScript starts the script as tun.c of openconnect does. "nofd" forgets
// the socket.
func fakeScript(how string) int {
	script := ""
	for i, arg := range os.Args {
		if arg == "--script" {
			script = os.Args[i+1]
		}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		panic(err)
	}
	unix.CloseOnExec(fds[0])
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.ExtraFiles = []*os.File{os.NewFile(3, ""), os.NewFile(uintptr(fds[1]), "")}
	cmd.Env = append(os.Environ(), "FAKE_ADDRESS=10.0.0.1", "FAKE_TEXT=two\nlines", "FAKE_LONG="+strings.Repeat("x", 100000))
	if how != "nofd" {
		cmd.Env = append(cmd.Env, "VPNFD=4")
	}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	fmt.Println("script", cmd.Process.Pid)
	_ = unix.Close(fds[1])
	return fds[0]
}

// asParent starts an openconnect and waits to be killed.
func asParent() {
	p, err := Start(Options{
		Program: os.Args[0], Env: append(os.Environ(), "AS_OPENCONNECT=script print=up wait exit=0"),
		Self: []string{os.Args[0], "-as-script"}, Stdout: os.Stdout, Stderr: os.Stderr, Wanted: isWanted,
	})
	if err != nil {
		panic(err)
	}
	<-p.Tunnel()
	fmt.Println("child", p.cmd.Process.Pid)
	select {}
}
