package driver

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// row is one of the table in docs/architecture.md.
type row struct {
	states, events, next []string
	told                 string
	tests                []string
}

func rows(t *testing.T) (list []row) {
	t.Helper()
	page, err := os.ReadFile("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(page), "| state | event | next |")
	if !found {
		t.Fatal("there is no table")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	coded := func(cell string) (all []string) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
			all = append(all, m[1])
		}
		return all
	}
	known := allEvents(t)
	words := regexp.MustCompile(`[a-z]+`)
	for _, line := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 5 {
			t.Fatalf("a row of %d cells: %s", len(cells), line)
		}
		r := row{states: words.FindAllString(cells[0], -1), next: words.FindAllString(cells[2], -1), told: cells[3], tests: coded(cells[4])}
		if r.states[0] == "any" {
			r.states = []string{string(Connecting), string(Configured), string(Connected), string(Reconnecting)}
		}
		events := coded(cells[1])
		for _, e := range events {
			if slices.Contains(known, Event(e)) {
				r.events = append(r.events, e)
			}
		}
		if len(r.tests) == 0 {
			t.Errorf("no test: %s", line)
		}
		list = append(list, r)
	}
	return list
}

// allEvents are those that state.go declares.
func allEvents(t *testing.T) (events []Event) {
	t.Helper()
	source, err := os.ReadFile("state.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`\tEvent\w+ +Event = "(.+)"`).FindAllStringSubmatch(string(source), -1) {
		events = append(events, Event(m[1]))
	}
	return events
}

// possible says whether a session can be in the state in such circumstances.
func possible(s State, c circumstances) bool {
	switch s {
	case Idle, Failed:
		return c == circumstances{}
	case Connecting:
		return !c.reconnect && !c.down // there were no parameters
	case Configured:
		return !c.notified
	case Connected:
		return c.notified
	case Reconnecting, Disconnecting:
	}
	return true
}

// Whatever can happen has its row in the table of docs/architecture.md, with
// what the code makes of it, and every row can happen.
func TestRows(t *testing.T) {
	all := rows(t)
	used := make([]bool, len(all))
	flags := []bool{false, true}
	for _, state := range []State{Idle, Connecting, Configured, Connected, Reconnecting, Disconnecting, Failed} {
		for _, event := range allEvents(t) {
			for _, notified := range flags {
				for _, reconnect := range flags {
					for _, down := range flags {
						for _, final := range []State{"", Idle, Failed} {
							c := circumstances{notified: notified, reconnect: reconnect, down: down, final: final}
							out, ok := next(state, event, c)
							if !ok || (final != "") != (state == Disconnecting) || !possible(state, c) {
								continue
							}
							goal := out.next
							if out.end != "" {
								goal = out.end
							}
							i := slices.IndexFunc(all, func(r row) bool {
								return slices.Contains(r.states, string(state)) && slices.Contains(r.events, string(event)) &&
									slices.Contains(r.next, string(goal)) && (out.message == "" || strings.Contains(r.told, "`"+out.message+"`"))
							})
							if i < 0 {
								t.Errorf("%s + %s under %+v leads to %s with %q, of which there is no row", state, event, c, goal, out.message)
								continue
							}
							used[i] = true
						}
					}
				}
			}
		}
	}
	for i, r := range all {
		if len(r.events) > 0 && !used[i] {
			t.Errorf("this cannot happen: %+v", r)
		}
	}
}
