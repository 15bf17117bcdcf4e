package sni

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"
)

// Entry is a line of a menu.
type Entry struct {
	Label     string
	Separator bool // nothing but a line
	Disabled  bool
	Checkable bool
	Checked   bool
	Children  []Entry // a submenu

	// Key tells lines apart that look the same.
	Key string

	// Click is called for each click, from any goroutine.
	Click func()
}

// look is what makes a line another one: one that looks differently is new to
// panels, which so need not be told of changes, and a click is always for what
// was seen.
func (e Entry) look(parent int32) string {
	return fmt.Sprint(parent, e.Separator, e.Disabled, e.Checkable, e.Checked, len(e.Children) > 0, "\x00", e.Label, "\x00", e.Key)
}

// menu is the tree as panels know it.
type menu struct {
	revision uint32
	last     int32
	ids      map[string]int32 // by look
	lines    map[int32]line
	before   map[int32]line // those of the last menu, which may still be clicked
}

// line is an Entry of a menu.
type line struct {
	Entry
	children []int32
}

// take makes another menu of entries, and says whether it looks differently.
func (m *menu) take(entries []Entry) bool {
	ids, lines := make(map[string]int32), make(map[int32]line)
	lines[0] = line{Entry{Children: entries}, m.number(0, entries, ids, lines)}
	same := m.lines != nil && len(lines) == len(m.lines)
	for id, l := range lines {
		same = same && slices.Equal(l.children, m.lines[id].children)
	}
	if !same {
		m.revision++
		m.before = m.lines
	}
	m.ids, m.lines = ids, lines
	return !same
}

// number gives each line below a parent its id: the one that it had.
func (m *menu) number(parent int32, entries []Entry, ids map[string]int32, lines map[int32]line) []int32 {
	var children []int32
	for _, e := range entries {
		look := e.look(parent)
		for ids[look] != 0 {
			look += "\x00" // the same once more, as separators are
		}
		id := m.ids[look]
		if id == 0 {
			m.last++
			id = m.last
		}
		ids[look] = id
		lines[id] = line{e, m.number(id, e.Children, ids, lines)}
		children = append(children, id)
	}
	return children
}

// properties of a line, where they are not what is taken for granted. An
// underscore would mark a key.
func (l line) properties() map[string]godbus.Variant {
	v := godbus.MakeVariant
	p := make(map[string]godbus.Variant)
	if l.Separator {
		p["type"] = v("separator")
		return p
	}
	p["label"] = v(strings.ReplaceAll(l.Label, "_", "__"))
	if l.Disabled {
		p["enabled"] = v(false)
	}
	if l.Checkable {
		state := int32(0)
		if l.Checked {
			state = 1
		}
		p["toggle-type"], p["toggle-state"] = v("checkmark"), v(state)
	}
	if len(l.children) > 0 {
		p["children-display"] = v("submenu")
	}
	return p
}

// layout is a line on the bus, with those below it.
type layout struct {
	ID         int32
	Properties map[string]godbus.Variant
	Children   []godbus.Variant
}

func (m *menu) layout(id, depth int32) layout {
	l := m.lines[id]
	out := layout{id, l.properties(), []godbus.Variant{}}
	if depth != 0 {
		for _, child := range l.children {
			out.Children = append(out.Children, godbus.MakeVariant(m.layout(child, depth-1)))
		}
	}
	return out
}

// idProperties is how GetGroupProperties answers for one line.
type idProperties struct {
	ID         int32
	Properties map[string]godbus.Variant
}

// group are the properties of lines; of all, where none is named.
func (m *menu) group(ids []int32) []idProperties {
	if len(ids) == 0 {
		ids = slices.Sorted(maps.Keys(m.lines))
	}
	out := []idProperties{}
	for _, id := range ids {
		if l, ok := m.lines[id]; ok {
			out = append(out, idProperties{id, l.properties()})
		}
	}
	return out
}

// find is a line that is, or has just been, in the menu.
func (m *menu) find(id int32) (line, bool) {
	l, ok := m.lines[id]
	if !ok {
		l, ok = m.before[id]
	}
	return l, ok
}
