package commands_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/commands"
	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
)

// commandLine runs a program that has some commands.
func commandLine(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	began := false
	act := func(*cobra.Command, []string) error {
		began = true
		return errors.New("no")
	}
	root := &cobra.Command{Use: "program", Version: "7"}
	group := &cobra.Command{Use: "group", Short: "commands"}
	group.AddCommand(&cobra.Command{Use: "one NAME", Short: "a command", Args: cobra.ExactArgs(1), RunE: act})
	root.AddCommand(group, &cobra.Command{Use: "read FILE", Short: "a command", Args: cobra.ExactArgs(1), RunE: act})
	var out, err bytes.Buffer
	code = commands.Run(t.Context(), ui.Program{Name: "program"}, root, &began, args, &out, &err)
	return code, out.String(), err.String()
}

// TestWrongUse: what is wrong is named, with the command that it is about.
func TestWrongUse(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"group one", "wrong number of arguments (0); usage: program group one NAME [flags]"},
		{"group one a b", "wrong number of arguments (2)"},
		{"group two", `unknown command "two" for "program group"`},
		{"completion klingon", `unknown command "klingon" for "program completion"`},
		{"group one --no a", "unknown flag: --no\n  see: program group one --help"},
		{"two", `unknown command "two" for "program"`},
	} {
		if code, out, err := commandLine(t, strings.Fields(c.line)...); code != ui.ExitUsage || out != "" || !strings.Contains(err, c.want) {
			t.Errorf("%s: %d %s\n%s\nwant %s", c.line, code, out, err, c.want)
		}
	}
	if code, _, _ := commandLine(t, "group", "one", "a"); code != ui.ExitFailed {
		t.Errorf("an error of the command itself: %d", code)
	}
}

// TestHelps: a group tells what is in it, the program which it is.
func TestHelps(t *testing.T) {
	for line, want := range map[string]string{"group": "one", "--version": "program 7\n", "completion": "bash"} {
		if code, out, err := commandLine(t, line); code != 0 || err != "" || !strings.Contains(out, want) {
			t.Errorf("%s: %d %s%s", line, code, out, err)
		}
	}
}

// TestOffersFiles to the shell where a file is taken, and nowhere else.
func TestOffersFiles(t *testing.T) {
	for line, want := range map[string]string{"group one": ":4\n", "read": ":0\n"} {
		if code, out, _ := commandLine(t, append(append([]string{"__complete"}, strings.Fields(line)...), "")...); code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: %d %q", line, code, out)
		}
	}
}
