// Package sni puts an icon with a menu into the panel of the desktop: the
// program's end of StatusNotifierItem and com.canonical.dbusmenu, which panels
// other than GNOME's speak, and that with an extension.
package sni

import (
	"context"
	"fmt"
	"image"
	"sync"

	godbus "github.com/godbus/dbus/v5"
)

const (
	itemPath  = "/StatusNotifierItem"
	menuPath  = itemPath + "/Menu"
	itemName  = "org.kde.StatusNotifierItem"
	menuName  = "com.canonical.dbusmenu"
	panelName = "org.kde.StatusNotifierWatcher"
	panelPath = "/StatusNotifierWatcher"

	properties = "org.freedesktop.DBus.Properties"
	busName    = "org.freedesktop.DBus"
)

// State is what is seen. Whoever hands one over does not change it any more.
type State struct {
	Icon []*image.NRGBA // the same in several sizes
	Tip  string
	Menu []Entry
}

// Item is an icon in the panel, or ready for when there is one. Its methods may
// be called from any goroutine.
type Item struct {
	bus       *godbus.Conn
	id, title string
	opened    func()

	mu      sync.Mutex
	state   State
	pixmaps []pixmap
	menu    menu
}

// pixmap is a picture on the bus: ARGB in the order of networks.
type pixmap struct {
	Width, Height int32
	Pixels        []byte
}

// tooltip on the bus.
type tooltip struct {
	Icon    string
	Pixmaps []pixmap
	Title   string
	Text    string
}

// Connect puts an icon on the session bus, whose address is in the environment,
// for every panel there is or comes until ctx is done. Panels remember the icon
// by its id, and say its title to those who do not see it. opened is called when
// a menu is about to be seen, from any goroutine.
func Connect(ctx context.Context, id, title string, first State, opened func()) (*Item, error) {
	i := &Item{id: id, title: title, opened: opened}
	i.take(first)
	bus, err := godbus.SessionBusPrivateNoAutoStartup(godbus.WithIncomingInterceptor(i.receive))
	if err == nil {
		i.bus = bus
		if err = i.join(ctx); err != nil {
			_ = bus.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot put the icon on the session bus: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = bus.Close() })
	return i, nil
}

func (i *Item) join(ctx context.Context) error {
	if err := i.bus.Auth(nil); err != nil {
		return err
	}
	if err := i.bus.Hello(); err != nil {
		return err
	}
	return i.watch(ctx)
}

// watch registers with the panel, and with each that comes. The match is first,
// so that none comes unseen.
func (i *Item) watch(ctx context.Context) error {
	signals := make(chan *godbus.Signal, 16)
	i.bus.Signal(signals)
	err := i.bus.AddMatchSignalContext(ctx, godbus.WithMatchSender(busName), godbus.WithMatchInterface(busName),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, panelName))
	if err != nil {
		return err
	}
	go func() {
		defer i.bus.RemoveSignal(signals)
		i.register(ctx)
		for {
			select {
			case <-ctx.Done():
				return
			case sig, ok := <-signals:
				if !ok {
					return
				}
				var name, before, now string
				if sig.Sender == busName && godbus.Store(sig.Body, &name, &before, &now) == nil && name == panelName && now != "" {
					i.register(ctx)
				}
			}
		}
	}()
	return nil
}

// register tells the panel of the icon. That there is none is no error.
func (i *Item) register(ctx context.Context) {
	_ = i.bus.Object(panelName, panelPath).CallWithContext(ctx, panelName+".RegisterStatusNotifierItem", godbus.FlagNoAutoStart, itemPath).Err
}

// Show changes what is seen.
func (i *Item) Show(s State) error {
	icon, tip, menu := i.take(s)
	var err error
	emit := func(changed bool, path godbus.ObjectPath, signal string, body ...any) {
		if changed && err == nil {
			err = i.bus.Emit(path, signal, body...)
		}
	}
	emit(icon, itemPath, itemName+".NewIcon")
	emit(tip, itemPath, itemName+".NewToolTip")
	emit(menu != 0, menuPath, menuName+".LayoutUpdated", menu, int32(0))
	if err != nil {
		return fmt.Errorf("cannot change the icon: %w", err)
	}
	return nil
}

// take makes s the state and says what is new: the menu with its revision.
func (i *Item) take(s State) (icon, tip bool, revision uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	pixmaps := make([]pixmap, 0, len(s.Icon))
	for _, img := range s.Icon {
		pixmaps = append(pixmaps, newPixmap(img))
	}
	icon, tip = !equal(pixmaps, i.pixmaps), s.Tip != i.state.Tip
	if i.menu.take(s.Menu) {
		revision = i.menu.revision
	}
	i.state, i.pixmaps = s, pixmaps
	return icon, tip, revision
}

func newPixmap(img *image.NRGBA) pixmap {
	p := pixmap{int32(img.Rect.Dx()), int32(img.Rect.Dy()), make([]byte, 0, len(img.Pix))}
	for at := 0; at+3 < len(img.Pix); at += 4 {
		p.Pixels = append(p.Pixels, img.Pix[at+3], img.Pix[at], img.Pix[at+1], img.Pix[at+2])
	}
	return p
}

func equal(a, b []pixmap) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if string(a[i].Pixels) != string(b[i].Pixels) {
			return false
		}
	}
	return true
}

// properties are those of an interface.
func (i *Item) properties(iface string) map[string]godbus.Variant {
	v := godbus.MakeVariant
	i.mu.Lock()
	defer i.mu.Unlock()
	switch iface {
	case itemName:
		return map[string]godbus.Variant{
			"Category": v("SystemServices"), "Id": v(i.id), "Title": v(i.title), "Status": v("Active"), "WindowId": v(int32(0)),
			"IconName": v(""), "IconThemePath": v(""), "IconPixmap": v(i.pixmaps),
			"OverlayIconName": v(""), "OverlayIconPixmap": v([]pixmap{}), "AttentionIconName": v(""), "AttentionIconPixmap": v([]pixmap{}),
			"AttentionMovieName": v(""), "ToolTip": v(tooltip{"", []pixmap{}, i.state.Tip, ""}),
			"ItemIsMenu": v(true), "Menu": v(godbus.ObjectPath(menuPath)),
		}
	case menuName:
		return map[string]godbus.Variant{
			"Version": v(uint32(3)), "TextDirection": v("ltr"), "Status": v("normal"), "IconThemePath": v([]string{}),
		}
	default:
		return map[string]godbus.Variant{}
	}
}
