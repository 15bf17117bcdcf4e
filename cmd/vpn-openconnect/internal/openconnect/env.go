package openconnect

import (
	"slices"
	"strings"
)

// Env is the environment for openconnect, made of ours: without the variables
// through which it speaks to its script, which it does not all clear itself
// and which would then pass for the server's; and with its messages in
// English, as they are read (see Event). The character set stays, or passwords
// could not have all letters.
func Env(environ []string, owned func(name string) bool) []string {
	all := ""
	for _, entry := range environ {
		if value, ok := strings.CutPrefix(entry, "LC_ALL="); ok {
			all = value
		}
	}
	out := slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return owned(name) || name == "LC_ALL" || name == "LC_MESSAGES" ||
			all != "" && (name == "LANG" || strings.HasPrefix(name, "LC_"))
	})
	if all != "" { // it rules over all the others, so it must go, but not what it says
		out = append(out, "LANG="+all)
	}
	return append(out, "LC_MESSAGES=C")
}
