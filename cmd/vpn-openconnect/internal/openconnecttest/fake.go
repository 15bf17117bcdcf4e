// Package openconnecttest is a stand-in for openconnect: a program that does,
// towards its parent and its script, what openconnect does.
package openconnecttest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// variable has the steps of the fake, separated by blanks.
const variable = "AS_OPENCONNECT"

// Env is the entry of an environment that makes Main the fake. The steps are
//
//	print=TEXT, error=TEXT   a line on either output, _ for blanks
//	prompt                   asks on the standard error and repeats the answer
//	script, script=nofd      starts the script, or without a packet socket
//	echo                     sends one packet back
//	wait                     prints the next signal
//	await=SIGNAL             waits for that signal: "interrupt", "user defined signal 2"
//	ignore, sleep            cannot be ended politely; does not end
//	leave=SECONDS            a child that holds the output open
//	kill, exit=CODE          ends
func Env(steps string) string { return variable + "=" + steps }

// Main is the fake where the environment says so; then it does not return.
// Call it first in TestMain: the test binary is the program to start.
func Main() {
	if steps := os.Getenv(variable); steps != "" {
		f := fake{signals: make(chan os.Signal, 8)}
		signal.Notify(f.signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
		for step := range strings.FieldsSeq(steps) {
			f.step(step)
		}
		os.Exit(0)
	}
}

type fake struct {
	signals chan os.Signal
	tunnel  int // openconnect's end
}

func (f *fake) step(step string) {
	name, value, _ := strings.Cut(step, "=")
	text := strings.ReplaceAll(value, "_", " ")
	switch name {
	case "print":
		fmt.Println(text)
	case "error":
		fmt.Fprintln(os.Stderr, text)
	case "prompt": // no line end, as openconnect asks
		fmt.Fprint(os.Stderr, "Password:")
		answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		fmt.Fprintf(os.Stderr, "\ngot %s", answer)
	case "script":
		f.script(value != "nofd")
	case "echo":
		f.echo()
	case "wait":
		fmt.Println("got", <-f.signals)
	case "await":
		for sig := range f.signals {
			fmt.Println("got", sig)
			if sig.String() == text {
				break
			}
		}
	case "ignore":
		signal.Ignore(unix.SIGINT, unix.SIGTERM)
	case "sleep":
		time.Sleep(time.Hour)
	case "leave":
		cmd := exec.Command("sleep", value)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		check(cmd.Start())
	case "kill":
		check(unix.Kill(os.Getpid(), unix.SIGKILL))
	case "exit":
		code, err := strconv.Atoi(value)
		check(err)
		os.Exit(code)
	default:
		check(fmt.Errorf("no such step: %s", step))
	}
}

func (f *fake) echo() {
	buf := make([]byte, 2048)
	n, err := unix.Read(f.tunnel, buf)
	check(err)
	_, err = unix.Write(f.tunnel, buf[:n])
	check(err)
}

// script starts the script through a shell, in a process group of its own and
// with every descriptor that is open: as openconnect does.
func (f *fake) script(withSocket bool) {
	at := slices.Index(os.Args, "--script")
	if at < 0 || !slices.Contains(os.Args, "--script-tun") {
		check(fmt.Errorf("no script in %q", os.Args))
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	check(err)
	unix.CloseOnExec(fds[0])
	f.tunnel = fds[0]
	cmd := exec.Command("/bin/sh", "-c", os.Args[at+1])
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.ExtraFiles = []*os.File{os.NewFile(3, "inherited"), os.NewFile(uintptr(fds[1]), "tunnel")}
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, variable+"=") })
	if withSocket {
		cmd.Env = append(cmd.Env, "VPNFD=4")
	}
	check(cmd.Start())
	fmt.Println("script", cmd.Process.Pid)
	check(unix.Close(fds[1]))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "fake openconnect:", err)
		os.Exit(99)
	}
}
