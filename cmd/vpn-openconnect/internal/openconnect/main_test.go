package openconnect

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-openconnect/internal/openconnecttest"
)

// TestMain lets the test binary also be the script, openconnect, and a parent
// that gets killed.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "-as-script" {
		os.Exit(asScript(os.Args[2]))
	}
	openconnecttest.Main()
	if os.Getenv("AS_PARENT") != "" {
		asParent()
	}
	os.Exit(m.Run())
}

func isWanted(name string) bool { return strings.HasPrefix(name, "FAKE_") }

func asScript(number string) int {
	fd, err := strconv.Atoi(number)
	if err == nil {
		err = Script(fd, os.Environ(), isWanted)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// asParent starts an openconnect and waits to be killed.
func asParent() {
	p, err := Start(Options{
		Program: os.Args[0], Env: append(os.Environ(), openconnecttest.Env("script print=up wait exit=0")),
		Self: []string{os.Args[0], "-as-script"}, Stdout: os.Stdout, Stderr: os.Stderr, Wanted: isWanted,
	})
	if err != nil {
		panic(err)
	}
	<-p.Tunnel()
	fmt.Println("child", p.cmd.Process.Pid)
	select {}
}
