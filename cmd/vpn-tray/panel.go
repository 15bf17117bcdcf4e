package main

import (
	"runtime"
	"strings"
	"sync"

	"fyne.io/systray"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/icon"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
)

const (
	// topRows is how many VPNs stand in the menu itself, in rows that must be
	// there before those that follow them. The others are in a submenu.
	topRows = 15

	// problemRows is how many problems are shown.
	problemRows = 3
)

// panel is the icon and its menu, by StatusNotifierItem. Rows are hidden and
// never removed: systray panics where a row that is removed is clicked. build
// comes first; then show and what build was given are called by one goroutine
// each.
type panel struct {
	shown    model.View
	drawn    bool
	status   *systray.MenuItem
	problems []*row
	configs  *rows
	retry    *row
	unlock   *row
	add      *rows
	settings *rows
	ready    chan struct{} // closed when all of these are there
}

// newPanel prepares what systray must know before it starts: the title is the
// id too by which hosts remember the icon.
func newPanel() *panel {
	systray.SetTitle("VPN")
	systray.SetTooltip("VPN")
	systray.SetIcon(icon.PNG(model.Disconnected))
	return &panel{ready: make(chan struct{})}
}

// build makes the menu. clicked is called for each click, from goroutines that
// run as long as the program.
func (p *panel) build(clicked func(model.Action)) {
	top := func() *row { return newRow(systray.AddMenuItem("", ""), clicked) }
	p.status = systray.AddMenuItem("VPN", "")
	p.status.Disable()
	for range problemRows {
		p.problems = append(p.problems, top())
	}
	checked := func(parent *systray.MenuItem) *systray.MenuItem { return parent.AddSubMenuItemCheckbox("", "", false) }
	plain := func(parent *systray.MenuItem) *systray.MenuItem { return parent.AddSubMenuItem("", "") }
	p.configs = &rows{}
	for range topRows {
		p.configs.all = append(p.configs.all, newRow(systray.AddMenuItemCheckbox("", "", false), clicked))
	}
	p.configs.more = submenu("More", checked, clicked)
	p.retry, p.unlock = top(), top()
	systray.AddSeparator()
	p.add = submenu("Add", plain, clicked)
	p.settings = submenu("Settings", plain, clicked)
	top().set(model.Item{Label: "Quit", Enabled: true, Action: model.Action{Verb: model.Quit}})
	go func() {
		for range systray.TrayOpenedCh {
			clicked(model.Action{Verb: model.Opened})
		}
	}()
	close(p.ready)
}

// show changes what differs from what is there.
func (p *panel) show(v model.View) {
	<-p.ready
	defer func() {
		// systray panics with an error where the session bus has just gone,
		// which ends the program elsewhere.
		if r := recover(); r != nil {
			if _, bug := r.(runtime.Error); bug {
				panic(r)
			}
		}
	}()
	if !p.drawn || v.Icon != p.shown.Icon {
		systray.SetIcon(icon.PNG(v.Icon))
	}
	if v.Status != p.shown.Status {
		systray.SetTooltip(v.Status)
		p.status.SetTitle(escape(v.Status))
	}
	for i, r := range p.problems {
		if i < len(v.Problems) {
			r.set(model.Item{Label: v.Problems[i]})
		} else {
			r.hide()
		}
	}
	p.configs.set(v.Configs)
	p.retry.offer(v.Retry, "Start the VPN service", model.Retry)
	p.unlock.offer(v.Unlock, "End the lockdown", model.Unlock)
	p.add.set(v.Add)
	p.settings.set(v.Settings)
	p.shown, p.drawn = v, true
}

// rows are lines of the menu that come and go. An item keeps its row, so that
// a click in the moment of a change is not for another one.
type rows struct {
	parent *systray.MenuItem // of a submenu
	all    []*row
	make   func() *row // nil: there is no room for more than there are
	more   *rows       // for those
}

// submenu is one that is seen when there is something in it.
func submenu(label string, item func(parent *systray.MenuItem) *systray.MenuItem, clicked func(model.Action)) *rows {
	parent := systray.AddMenuItem(label, "")
	parent.Hide()
	return &rows{parent: parent, make: func() *row { return newRow(item(parent), clicked) }}
}

func (l *rows) set(items []model.Item) {
	wanted := make(map[string]model.Item, len(items))
	for _, item := range items {
		wanted[item.Action.Target] = item
	}
	had := make(map[string]bool)
	for _, r := range l.all {
		if item, ok := wanted[r.item().Action.Target]; ok && r.visible {
			r.set(item)
			had[item.Action.Target] = true
		} else {
			r.hide()
		}
	}
	var rest []model.Item
	for _, item := range items {
		if had[item.Action.Target] {
			continue
		}
		if r := l.free(); r != nil {
			r.set(item)
		} else {
			rest = append(rest, item)
		}
	}
	if l.more != nil {
		l.more.set(rest)
	}
	if l.parent == nil {
		return
	}
	if len(items) > 0 {
		l.parent.Show()
	} else {
		l.parent.Hide()
	}
}

// free is a row for a new item, nil where there is no room.
func (l *rows) free() *row {
	for _, r := range l.all {
		if !r.visible {
			return r
		}
	}
	if l.make == nil {
		return nil
	}
	r := l.make()
	l.all = append(l.all, r)
	return r
}

// row is one line of the menu.
type row struct {
	systray *systray.MenuItem
	visible bool

	mu    sync.Mutex
	shown model.Item
}

func newRow(item *systray.MenuItem, clicked func(model.Action)) *row {
	r := &row{systray: item}
	item.Hide()
	go func() {
		for range item.ClickedCh {
			clicked(r.item().Action)
		}
	}()
	return r
}

func (r *row) item() model.Item {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shown
}

func (r *row) set(item model.Item) {
	before := r.item()
	if r.visible && before == item {
		return
	}
	r.mu.Lock()
	r.shown = item
	r.mu.Unlock()
	if before.Label != item.Label {
		r.systray.SetTitle(escape(item.Label))
	}
	if before.Checked != item.Checked {
		if item.Checked {
			r.systray.Check()
		} else {
			r.systray.Uncheck()
		}
	}
	if item.Enabled == r.systray.Disabled() {
		if item.Enabled {
			r.systray.Enable()
		} else {
			r.systray.Disable()
		}
	}
	if !r.visible {
		r.systray.Show()
		r.visible = true
	}
}

func (r *row) hide() {
	if r.visible {
		r.systray.Hide()
		r.visible = false
	}
}

func (r *row) offer(shown bool, label string, verb model.Verb) {
	if shown {
		r.set(model.Item{Label: label, Enabled: true, Action: model.Action{Verb: verb}})
	} else {
		r.hide()
	}
}

// escape keeps an underscore from marking a key.
func escape(label string) string { return strings.ReplaceAll(label, "_", "__") }
