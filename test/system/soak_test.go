package system

import (
	"fmt"
	"os"
	"testing"
)

// soaking says that there is time, for large numbers: `make soak`.
func soaking() bool { return os.Getenv("SOAK") != "" }

// times is how often something is done: a few times always, many in a soak.
func times(few, many int) int {
	if soaking() {
		return many
	}
	return few
}

// figure tells one result. A soak also puts it into the table that it ends
// with.
func figure(t testing.TB, what, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	t.Logf("%s: %s", what, text)
	name := os.Getenv("SOAK_TABLE")
	if name == "" {
		return
	}
	table, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if _, err := fmt.Fprintf(table, "%s\t%s\n", what, text); err != nil {
		t.Fatal(err)
	}
}

// progress tells, in a soak, how far a test is.
func progress(t testing.TB, done, all int) {
	t.Helper()
	if soaking() && done%max(all/20, 1) == 0 {
		t.Logf("%d of %d", done, all)
	}
}
