package ui

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		args           string
		code           int
		done           bool
		stdout, stderr string // parts
	}{
		{"", 0, false, "", ""},
		{"--bus x", 0, false, "", ""},
		{"--version", ExitOK, true, "prog 1.2.3\n", ""},
		{"--help", ExitOK, true, "About.\n\n      --bus ADDRESS", ""},
		{"--help", ExitOK, true, "--version       print the version, and exit\n", ""},
		{"-h", ExitOK, true, "About.\n", ""},
		{"--nonsense", ExitUsage, true, "", "prog: unknown flag: --nonsense\nTry 'prog --help'.\n"},
		{"--bus", ExitUsage, true, "", "prog: flag needs an argument: --bus\n"},
		{"--version more", ExitUsage, true, "", "prog: unexpected argument \"more\"\n"},
		{"--bus bad", ExitUsage, true, "", "prog: that is a bad one\nTry"},
	} {
		f := pflag.NewFlagSet("prog", pflag.ContinueOnError)
		bus := f.String("bus", "", "`ADDRESS` of a bus")
		o := Options{FlagSet: f, About: "About.\n\n", Version: "1.2.3", Check: func() error {
			if *bus == "bad" {
				return errors.New("that is a bad one")
			}
			return nil
		}}
		var stdout, stderr bytes.Buffer
		code, done := o.Parse(strings.Fields(tt.args), &stdout, &stderr)
		if code != tt.code || done != tt.done || !strings.Contains(stdout.String(), tt.stdout) || !strings.Contains(stderr.String(), tt.stderr) ||
			(tt.stdout == "") != (stdout.Len() == 0) || (tt.stderr == "") != (stderr.Len() == 0) {
			t.Errorf("%q: %d %v, stdout %q, stderr %q", tt.args, code, done, stdout.String(), stderr.String())
		}
	}
}
