// Package desktop has what tests of vpn-tray need of a desktop: stand-ins for
// the panel and the notification server, by what they say on the session bus; and
// GNOME, for who wants to look.
package desktop

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"slices"
	"strings"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	watcherName = "org.kde.StatusNotifierWatcher"
	watcherPath = "/StatusNotifierWatcher"
	itemName    = "org.kde.StatusNotifierItem"
	menuName    = "com.canonical.dbusmenu"
	itemPath    = "/StatusNotifierItem"
)

// Panel stands in for the desktop's: it has the name that items register with,
// and reads and clicks their menus as panels do. Its methods may be called from
// any goroutine.
type Panel struct {
	conn *godbus.Conn

	properties *prop.Properties

	mu    sync.Mutex
	items []string // bus names
}

// StartPanel puts a panel on the session bus. It leaves when the test ends, or
// with Close.
func StartPanel(t testing.TB, bus string) *Panel {
	t.Helper()
	p := &Panel{conn: dial(t, bus)}
	if err := p.conn.Export(watcher{p}, watcherPath, watcherName); err != nil {
		t.Fatal(err)
	}
	var err error
	p.properties, err = prop.Export(p.conn, watcherPath, prop.Map{watcherName: {
		"RegisteredStatusNotifierItems":  {Value: []string{}, Emit: prop.EmitTrue},
		"IsStatusNotifierHostRegistered": {Value: true, Emit: prop.EmitTrue},
		"ProtocolVersion":                {Value: int32(0), Emit: prop.EmitTrue},
	}})
	if err != nil {
		t.Fatal(err)
	}
	own(t, p.conn, watcherName)
	return p
}

// Close takes the panel off the bus.
func (p *Panel) Close() { _ = p.conn.Close() }

// Items is how many have registered.
func (p *Panel) Items() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.items)
}

// Observe is a Panel that looks at what has registered with the real one on the
// session bus.
func Observe(t testing.TB, bus string) *Panel {
	t.Helper()
	p := &Panel{conn: dial(t, bus)}
	harness.Eventually(t, harness.Timeout, "an item is in the panel", func() error {
		v, err := p.conn.Object(watcherName, watcherPath).GetProperty(watcherName + ".RegisteredStatusNotifierItems")
		if err != nil {
			return err
		}
		var items []string
		if err := v.Store(&items); err != nil || len(items) == 0 {
			return fmt.Errorf("items %q, %w", items, err)
		}
		for _, item := range items {
			name, _, _ := strings.Cut(item, "/")
			p.items = append(p.items, name)
		}
		return nil
	})
	return p
}

type watcher struct{ p *Panel }

// RegisterStatusNotifierItem is what items call, with their name on the bus or
// their path.
func (w watcher) RegisterStatusNotifierItem(name string, sender godbus.Sender) *godbus.Error {
	if strings.HasPrefix(name, "/") {
		name = string(sender)
	}
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if !slices.Contains(w.p.items, name) {
		w.p.items = append(w.p.items, name)
	}
	var list []string
	for _, name := range w.p.items {
		list = append(list, name+itemPath)
	}
	w.p.properties.SetMust(watcherName, "RegisteredStatusNotifierItems", list)
	return nil
}

// Entry is a line of a menu.
type Entry struct {
	ID       int32
	Label    string
	Checked  bool
	Enabled  bool
	Children []Entry
}

// String is the line with those below it.
func (e Entry) String() string {
	var b strings.Builder
	b.WriteString(e.Label)
	if e.Checked {
		b.WriteString(" [x]")
	}
	if !e.Enabled {
		b.WriteString(" (grey)")
	}
	if len(e.Children) > 0 {
		fmt.Fprint(&b, " ", e.Children)
	}
	return b.String()
}

// layout is an item of com.canonical.dbusmenu.
type layout struct {
	ID         int32
	Properties map[string]godbus.Variant
	Children   []godbus.Variant
}

// last is the item that registered last.
func (p *Panel) last() (godbus.BusObject, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.items) == 0 {
		return nil, errors.New("nothing has registered")
	}
	return p.conn.Object(p.items[len(p.items)-1], itemPath), nil
}

func (p *Panel) menu() (godbus.BusObject, error) {
	item, err := p.last()
	if err != nil {
		return nil, err
	}
	var path godbus.ObjectPath
	if err := property(item, "Menu", &path); err != nil {
		return nil, err
	}
	return p.conn.Object(item.Destination(), path), nil
}

func property(item godbus.BusObject, name string, to any) error {
	v, err := item.GetProperty(itemName + "." + name)
	if err == nil {
		err = v.Store(to)
	}
	if err != nil {
		return fmt.Errorf("property %s: %w", name, err)
	}
	return nil
}

// Menu reads what the menu shows.
func (p *Panel) Menu() ([]Entry, error) {
	menu, err := p.menu()
	if err != nil {
		return nil, err
	}
	var revision uint32
	var root layout
	if err := menu.Call(menuName+".GetLayout", 0, int32(0), int32(-1), []string{}).Store(&revision, &root); err != nil {
		return nil, err
	}
	return entries(root.Children)
}

// entries are those of a menu that are seen, separators aside.
func entries(from []godbus.Variant) ([]Entry, error) {
	var out []Entry
	for _, v := range from {
		var l layout
		if err := v.Store(&l); err != nil {
			return nil, err
		}
		get := func(name string) any { return l.Properties[name].Value() }
		if get("visible") == false || get("type") == "separator" {
			continue
		}
		label, _ := get("label").(string)
		children, err := entries(l.Children)
		if err != nil {
			return nil, err
		}
		out = append(out, Entry{
			ID: l.ID, Label: strings.ReplaceAll(label, "__", "_"), Enabled: get("enabled") != false,
			Checked: get("toggle-type") == "checkmark" && get("toggle-state") == int32(1), Children: children,
		})
	}
	return out, nil
}

// Await waits until the menu has all of these lines, each as Entry prints it
// without what is below, and returns the menu.
func (p *Panel) Await(t testing.TB, lines ...string) []Entry {
	t.Helper()
	var menu []Entry
	harness.Eventually(t, harness.Timeout, fmt.Sprintf("the menu shows %q", lines), func() (err error) {
		if menu, err = p.Menu(); err != nil {
			return err
		}
		for _, line := range lines {
			if !slices.ContainsFunc(menu, func(e Entry) bool {
				e.Children = nil
				return e.String() == line
			}) {
				return fmt.Errorf("it shows %q", menu)
			}
		}
		return nil
	})
	return menu
}

// Click clicks the line that is reached by these labels.
func (p *Panel) Click(t testing.TB, labels ...string) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, fmt.Sprintf("%q is in the menu", labels), func() error {
		entry, err := p.find(labels)
		if err != nil {
			return err
		}
		return p.Event(entry.ID, "clicked")
	})
}

func (p *Panel) find(labels []string) (Entry, error) {
	level, err := p.Menu()
	if err != nil {
		return Entry{}, err
	}
	var found Entry
	for _, label := range labels {
		i := slices.IndexFunc(level, func(e Entry) bool { return e.Label == label && e.Enabled })
		if i < 0 {
			return Entry{}, fmt.Errorf("no %q among %q", label, level)
		}
		found, level = level[i], level[i].Children
	}
	return found, nil
}

// Event tells the item what became of a line; of 0, of the menu.
func (p *Panel) Event(id int32, what string) error {
	menu, err := p.menu()
	if err != nil {
		return err
	}
	return menu.Call(menuName+".Event", 0, id, what, godbus.MakeVariant(int32(0)), uint32(0)).Err
}

// Look is what can be seen of an item without its menu: the largest picture.
type Look struct {
	ID, Title, Tip string
	Width, Height  int
	Pixels         []byte // ARGB
}

// Colour is that of most of the picture that is not see-through.
func (l Look) Colour() color.RGBA {
	count, most := make(map[color.RGBA]int), color.RGBA{}
	for i := 0; i+3 < len(l.Pixels); i += 4 {
		if c := (color.RGBA{l.Pixels[i+1], l.Pixels[i+2], l.Pixels[i+3], 0xff}); l.Pixels[i] == 0xff {
			if count[c]++; count[c] > count[most] {
				most = c
			}
		}
	}
	return most
}

// Image is the picture.
func (l Look) Image() *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, l.Width, l.Height))
	for i := 0; i+3 < min(len(l.Pixels), len(img.Pix)); i += 4 {
		img.Pix[i], img.Pix[i+1], img.Pix[i+2], img.Pix[i+3] = l.Pixels[i+1], l.Pixels[i+2], l.Pixels[i+3], l.Pixels[i]
	}
	return img
}

// Look looks at the item that registered last.
func (p *Panel) Look() (Look, error) {
	item, err := p.last()
	if err != nil {
		return Look{}, err
	}
	type picture struct {
		W, H int32
		Pix  []byte
	}
	var look Look
	var pictures []picture
	var tip struct {
		Name     string
		Pictures []picture
		Title    string
		Text     string
	}
	err = errors.Join(property(item, "Id", &look.ID), property(item, "Title", &look.Title),
		property(item, "ToolTip", &tip), property(item, "IconPixmap", &pictures))
	if err != nil {
		return Look{}, err
	}
	look.Tip = tip.Title
	for _, p := range pictures {
		if int(p.W) > look.Width {
			look.Width, look.Height, look.Pixels = int(p.W), int(p.H), p.Pix
		}
	}
	return look, nil
}

func dial(t testing.TB, bus string) *godbus.Conn {
	t.Helper()
	conn, err := godbus.Connect(bus)
	if err != nil {
		t.Fatalf("cannot join the session bus: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func own(t testing.TB, conn *godbus.Conn, name string) {
	t.Helper()
	reply, err := conn.RequestName(name, godbus.NameFlagDoNotQueue)
	if err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("cannot own %s: %v, %v", name, reply, err)
	}
}
