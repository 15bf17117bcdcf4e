package params

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Problem is one thing that is wrong with a dictionary.
type Problem struct {
	// Key is the dictionary's key as the client wrote it.
	Key string

	// Value is the offending value or list entry, quoted and cut; empty where
	// the key as a whole is at fault.
	Value string

	// Text continues the sentence that Key and Value begin.
	Text string
}

// String is the problem as a clause without a final stop. What came from the
// client is quoted and cut, so the clause is safe to log and to send.
func (p Problem) String() string {
	key := p.Key
	if !known(key) {
		key = quote(key)
	}
	if p.Value == "" {
		return key + " " + p.Text
	}
	return key + " " + p.Value + " " + p.Text
}

// shownText is how many bytes of a client's text an error repeats.
const shownText = 128

func quote(s string) string {
	if len(s) > shownText {
		return strconv.Quote(s[:shownText]) + "…"
	}
	return strconv.Quote(s)
}

// Problems is all that is wrong with a dictionary, in the order of the keys in
// the documentation, unknown keys last. As an error it is one sentence. It
// must not be returned as an error where it is empty: use Join.
//
//nolint:errname // a list first, an error where it has entries
type Problems []Problem

// shownPerKey is how many problems of one key Error spells out, all unknown
// keys counting as one: every offending key of ours is named whatever the
// others hold, and the message stays bounded.
const shownPerKey = 20

func (p Problems) Error() string {
	var b strings.Builder
	b.WriteString("invalid parameters: ")
	shown, total := map[string]int{}, 0
	for _, problem := range p {
		group := problem.Key
		if !known(group) {
			group = ""
		}
		if shown[group]++; shown[group] > shownPerKey {
			continue
		}
		if total++; total > 1 {
			b.WriteString("; ")
		}
		b.WriteString(problem.String())
	}
	if more := len(p) - total; more > 0 {
		fmt.Fprintf(&b, "; … and %d more", more)
	}
	return b.String()
}

// Join is errors.Join for the results of Parse and Conflicts: all Problems
// among errs become one, so that the client learns everything at once. It is
// nil where nothing is wrong.
func Join(errs ...error) error {
	var problems Problems
	var others []error
	for _, err := range errs {
		if p, ok := errors.AsType[Problems](err); ok {
			problems = append(problems, p...)
		} else if err != nil {
			others = append(others, err)
		}
	}
	if len(problems) > 0 {
		if len(others) == 0 {
			return problems
		}
		others = append([]error{problems}, others...)
	}
	return errors.Join(others...)
}
