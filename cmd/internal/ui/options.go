package ui

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"
)

// Options is the command line of a program without commands and arguments.
type Options struct {
	*pflag.FlagSet        // of the program's name; Parse adds --version
	About          string // above the options in --help
	Version        string
	Check          func() error // looks at all of them together; may be nil
}

// Parse reads args. Where the program has no more to do, for --help, --version
// and wrong use, it has been said, and done is true.
func (o Options) Parse(args []string, stdout, stderr io.Writer) (code int, done bool) {
	o.SetOutput(io.Discard) // errors are told here
	o.SortFlags = false
	version := o.Bool("version", false, "print the version, and exit")
	o.Usage = func() { fmt.Fprint(stdout, o.About, o.FlagUsages()) }
	err := o.FlagSet.Parse(args)
	if err == nil && o.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", o.Arg(0))
	}
	if err == nil && o.Check != nil {
		err = o.Check()
	}
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return ExitOK, true
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\nTry '%[1]s --help'.\n", o.Name(), err)
		return ExitUsage, true
	case *version:
		fmt.Fprintln(stdout, o.Name(), o.Version)
		return ExitOK, true
	}
	return 0, false
}
