package sni

import (
	"testing"
)

func lines(m *menu) map[string]int32 {
	out := make(map[string]int32)
	for id, l := range m.lines {
		if id != 0 {
			out[l.Label] = id
		}
	}
	return out
}

// A line that looks as before is the one that panels know; one that does not is
// new; and a click on what has just gone is still for that.
func TestLinesKeepTheirNumbers(t *testing.T) {
	clicked := ""
	entry := func(label, key string, children ...Entry) Entry {
		return Entry{Label: label, Key: key, Children: children, Click: func() { clicked = label }}
	}
	var m menu
	menu := func(work string) []Entry {
		return []Entry{entry(work, "/work"), entry("Same", "/1"), entry("Same", "/2"), {Separator: true}, {Separator: true}, entry("Add", "", entry("One", ""))}
	}
	if !m.take(menu("Work")) || m.revision != 1 || len(m.lines) != 8 {
		t.Fatalf("first: %+v", m)
	}
	before := lines(&m)
	if m.take(menu("Work")) || m.revision != 1 {
		t.Error("the same menu is another")
	}
	if !m.take(menu("Work: connected")) || m.revision != 2 || len(m.lines) != 8 {
		t.Errorf("then: %+v", m)
	}
	now := lines(&m)
	if now["Add"] != before["Add"] || now["One"] != before["One"] || now["Work: connected"] == before["Work"] {
		t.Errorf("before %v, now %v", before, now)
	}
	l, ok := m.find(before["Work"])
	if !ok {
		t.Fatal("the line that has gone is unknown")
	}
	if l.Click(); clicked != "Work" {
		t.Errorf("clicked %q", clicked)
	}
	if m.take(menu("Work: failed")); len(m.before) > 8 {
		t.Errorf("%d old lines", len(m.before))
	}
	if _, ok := m.find(before["Work"]); ok {
		t.Error("old lines are kept for ever")
	}
	// The order is of the look, too.
	if swapped := menu("Work: failed"); !m.take(append([]Entry{swapped[2], swapped[0], swapped[1]}, swapped[3:]...)) {
		t.Error("another order is the same menu")
	}
}
