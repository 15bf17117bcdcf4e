// Package commands is what command lines of several commands have in common.
package commands

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
)

// Run runs a command line of commands and returns the exit code. Errors before
// a command began, which it says by itself, are those of wrong use.
func Run(ctx context.Context, p ui.Program, root *cobra.Command, began *bool, args []string, stdout, stderr io.Writer) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetVersionTemplate(p.Name + " {{.Version}}\n")
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.InitDefaultCompletionCmd()
	prepare(root)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !*began {
		err = &ui.Error{Code: ui.ExitUsage, Err: err, Hint: "see: " + cmd.CommandPath() + " --help"}
	}
	return p.Report(ctx, stderr, err)
}

// prepare has a command, and those below it, say what they are when they are
// used in a wrong way, and offer files to the shell only where they take some.
func prepare(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		prepare(sub)
	}
	switch {
	case !cmd.HasParent():
		return // cobra's own words
	case cmd.HasSubCommands() && !cmd.Runnable():
		// One that does not run would take any word for a wish for help.
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		return
	}
	if check := cmd.Args; check != nil && strings.Contains(cmd.Use, " ") {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if check(cmd, args) != nil {
				return fmt.Errorf("wrong number of arguments (%d); usage: %s", len(args), cmd.UseLine())
			}
			return nil
		}
	}
	if cmd.ValidArgsFunction == nil && !strings.Contains(cmd.Use, "FILE") {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
}
