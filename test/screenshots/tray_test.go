// Package screenshots looks at what a person sees, on a screen in memory, with
// the panel and the notifications of Xfce. With -update it writes the pictures
// of the documentation.
package screenshots

import (
	"flag"
	"fmt"
	"image"
	"image/draw"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
	"github.com/vpnprovider/vpnproviderd/test/harness"
	"github.com/vpnprovider/vpnproviderd/test/screenshots/desktop"
)

var update = flag.Bool("update", false, "write docs/images")

func TestMain(m *testing.M) {
	flag.Parse()
	harness.Main(m)
}

// session is the bus of a desktop session, which starts its services.
const session = `<busconfig>
  <type>session</type>
  <listen>unix:path=%s/bus</listen>
  <servicedir>/usr/share/dbus-1/services</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>`

// panelConfig is a panel at the top of the screen with nothing but a tray.
const panelConfig = `<?xml version="1.0" encoding="UTF-8"?>
<channel name="xfce4-panel" version="1.0">
  <property name="configver" type="int" value="2"/>
  <property name="panels" type="array">
    <value type="int" value="1"/>
    <property name="panel-1" type="empty">
      <property name="position" type="string" value="p=6;x=0;y=0"/>
      <property name="length" type="uint" value="100"/>
      <property name="position-locked" type="bool" value="true"/>
      <property name="size" type="uint" value="32"/>
      <property name="plugin-ids" type="array"><value type="int" value="1"/><value type="int" value="2"/></property>
    </property>
  </property>
  <property name="plugins" type="empty">
    <property name="plugin-1" type="string" value="separator">
      <property name="expand" type="bool" value="true"/>
      <property name="style" type="uint" value="0"/>
    </property>
    <property name="plugin-2" type="string" value="systray"/>
  </property>
</channel>
`

const width, height, panelHeight = 640, 260, 32

const gtkSettings = `[Settings]
gtk-font-name=DejaVu Sans 11
gtk-enable-animations=0
`

// screen is a desktop with the tray in its panel.
type screen struct {
	*desktop.Screen
	t       *testing.T
	env     []string
	session string // the bus
	xfce    *desktop.Process
	service *clienttest.Service
	client  *client.Client
	panel   *desktop.Panel
	paths   map[string]string // of configs

	shown    *image.RGBA // what was looked at last
	pictures []*image.NRGBA
}

// fail ends the session.
func (s *screen) fail(reason string) {
	s.t.Helper()
	sessions, err := s.client.ListSessions(s.t.Context())
	if err != nil || len(sessions) != 1 {
		s.t.Fatalf("sessions %v, %v", sessions, err)
	}
	s.service.End(sessions[0].Path, reason)
}

// lockdown blocks all but Work.
func (s *screen) lockdown() {
	s.t.Helper()
	on := true
	if err := s.client.Config(s.paths["Work"]).Update(s.t.Context(), client.ConfigUpdate{Lockdown: &on}); err != nil {
		s.t.Fatal(err)
	}
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	harness.Require(t, "Xvfb", "xfce4-panel", "xdotool", "tesseract", "dbus-daemon")
	s := &screen{Screen: desktop.StartScreen(t, width, height), t: t, paths: make(map[string]string)}
	home := harness.TempDir(t)
	for name, text := range map[string]string{
		"bus.conf": fmt.Sprintf(session, home), ".config/gtk-3.0/settings.ini": gtkSettings,
		".config/xfce4/xfconf/xfce-perchannel-xml/xfce4-panel.xml": panelConfig,
	} {
		name = filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	address := "unix:path=" + home + "/bus"
	s.env = []string{
		"DISPLAY=" + s.Display, "DBUS_SESSION_BUS_ADDRESS=" + address, "HOME=" + home, "XDG_RUNTIME_DIR=" + home,
		"LC_ALL=C.UTF-8", "NO_AT_BRIDGE=1", "GTK_A11Y=none", "XDG_CURRENT_DESKTOP=XFCE",
	}
	s.start("dbus-daemon", "--config-file="+home+"/bus.conf", "--nofork", "--nopidfile", "--nosyslog", "--print-address").Await(t, "unix:path=")
	s.xfce = s.start("xfce4-panel", "--disable-wm-check")
	system := clienttest.Bus(t)
	s.service = clienttest.Start(t, system)
	s.provide(system)
	s.start(harness.Binary(t, "vpn-tray"), "--bus", system)
	s.session = address
	s.panel = desktop.Observe(t, address)
	return s
}

func (s *screen) start(argv ...string) *desktop.Process {
	s.t.Helper()
	return desktop.Start(s.t, s.env, argv...)
}

// provide makes the configs of two apps.
func (s *screen) provide(bus string) {
	s.t.Helper()
	for app, configs := range map[string][]string{"Corporate": {"Work", "Laboratory"}, "Private": {"Home"}} {
		c, err := client.Dial(s.t.Context(), client.WithAddress(bus))
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = c.Close() })
		s.client = c
		p, err := c.RegisterProvider(s.t.Context(), "com.example."+app, client.ProviderOptions{DisplayName: app})
		if err != nil {
			s.t.Fatal(err)
		}
		go func() {
			for range p.Events() {
			}
		}()
		for _, name := range configs {
			cfg, err := p.CreateConfig(s.t.Context(), name, client.ConfigOptions{})
			if err != nil {
				s.t.Fatal(err)
			}
			s.paths[name] = cfg.Path()
		}
	}
}

// where the panel is, and what is below it.
func panelPart() image.Rectangle { return image.Rect(0, 0, width, panelHeight) }
func below() image.Rectangle     { return image.Rect(0, panelHeight, width, height) }

// icon waits until the panel shows the icon in the colour of the item's
// picture, which is added to pictures, and returns where.
func (s *screen) icon() (at image.Point) {
	s.t.Helper()
	var look desktop.Look
	harness.Eventually(s.t, harness.Timeout, "the icon is in the panel", func() (err error) {
		if look, err = s.panel.Look(); err != nil {
			return err
		}
		img, err := s.Shot()
		if err != nil {
			return err
		}
		var n int
		if at, n = desktop.Find(img, panelPart(), look.Colour(), 0); n < 20 {
			return fmt.Errorf("%d pixels of %v", n, look.Colour())
		}
		return nil
	})
	if picture := look.Image(); !slices.ContainsFunc(s.pictures, func(p *image.NRGBA) bool { return slices.Equal(p.Pix, picture.Pix) }) {
		s.pictures = append(s.pictures, picture)
	}
	return at
}

// open clicks the icon, waits for the menu, and reads all that is seen then.
func (s *screen) open(want ...string) []desktop.Word {
	s.t.Helper()
	before := s.Settled(s.t, nil)
	s.Click(s.t, s.icon())
	return s.read(before, below(), want...)
}

// read waits until the screen shows something else than before, and has words, in
// any order, in a part of it: a menu may be drawn piece by piece.
func (s *screen) read(before *image.RGBA, part image.Rectangle, want ...string) (words []desktop.Word) {
	s.t.Helper()
	harness.Eventually(s.t, harness.Timeout, "the words are on the screen", func() error {
		s.shown = s.Settled(s.t, before)
		words = desktop.Read(s.t, s.shown, part)
		for word := range strings.FieldsSeq(strings.Join(want, " ")) {
			if _, err := s.where(words, word); err != nil {
				return err
			}
		}
		return nil
	})
	return words
}

// where a word is on the screen.
func (s *screen) where(words []desktop.Word, text string) (image.Point, error) {
	s.t.Helper()
	for _, w := range words {
		if strings.Trim(w.Text, ":.…,") == text {
			return w.At.Min.Add(w.At.Max).Div(2), nil
		}
	}
	desktop.Save(s.t, s.shown, filepath.Join(os.TempDir(), "vpn-tray-failed.png"))
	return image.Point{}, fmt.Errorf("%q is not to be read on the screen, but %v is (see vpn-tray-failed.png)", text, words)
}

// find is where, for what must be there.
func (s *screen) find(words []desktop.Word, text string) image.Point {
	s.t.Helper()
	at, err := s.where(words, text)
	if err != nil {
		s.t.Fatal(err)
	}
	return at
}

// picture keeps a part of what was looked at last for the documentation.
func (s *screen) picture(name string, part image.Rectangle) {
	s.t.Helper()
	if *update {
		desktop.Save(s.t, s.shown.SubImage(part), filepath.Join(harness.ModuleRoot(s.t), "docs/images", name))
	}
}

// A person clicks the icon and then a VPN, and reads what becomes of it: with
// the pointer, on the screen.
func TestTrayOnScreen(t *testing.T) {
	s := newScreen(t)
	s.panel.Await(t, "Not connected (grey)", "Work", "Home", "Add", "Settings")
	words := s.open("Not connected", "Home Laboratory Work", "Add Settings Quit")
	s.picture("tray-menu.png", image.Rect(300, 0, width, 240))

	s.submenu(words)

	// Another panel knows everything, too.
	s.xfce.Kill()
	s.xfce = s.start("xfce4-panel", "--disable-wm-check")
	s.panel = desktop.Observe(t, s.session)
	words = s.open("Not connected", "Home Laboratory Work", "Add Settings Quit")
	work := s.find(words, "Work")
	s.submenu(words)
	s.Click(t, work)
	s.panel.Await(t, "Work: connecting … [x]", "Connecting to Work … (grey)")
	s.icon()
	s.service.SetState(s.paths["Work"], "connected")
	s.panel.Await(t, "Connected to Work (grey)")
	s.open("Connected to Work", "Home Laboratory Work connected")
	s.picture("tray-connected.png", image.Rect(300, 0, width, 240))
	s.Key(t, "Escape")
	s.Point(t, image.Pt(0, height-1))

	before := s.Settled(t, s.shown)
	s.service.SetState(s.paths["Work"], "reconnecting")
	s.panel.Await(t, "Reconnecting to Work … (grey)")
	s.icon()
	s.notification(before, "Work is reconnecting")
	s.picture("tray-reconnecting.png", image.Rect(200, 0, width, 130))
	s.fail("connection timed out")
	s.panel.Await(t, "Work: failed, it took too long", "Not connected (grey)")
	s.icon()
	s.notification(before, "Work is not connected")
	s.picture("tray-failed.png", image.Rect(200, 0, width, 130))
	s.service.SetState(s.paths["Work"], "idle")
	s.lockdown()
	s.panel.Await(t, "Lockdown: nothing leaves without a VPN (grey)")
	s.icon()
	s.icons()
}

// submenu looks at what is below Add, in a menu with these words.
func (s *screen) submenu(words []desktop.Word) {
	s.t.Helper()
	add := s.find(words, "Add")
	s.Point(s.t, add)
	s.read(s.shown, image.Rect(0, panelHeight, add.X-50, height), "Corporate Private") // left of the menu itself
}

// notification waits until a text, and no other, can be read on the screen.
func (s *screen) notification(before *image.RGBA, text string) {
	s.t.Helper()
	harness.Eventually(s.t, harness.Timeout, "the notification is shown", func() error {
		s.shown = s.Settled(s.t, before)
		var all []string
		for _, w := range desktop.Read(s.t, s.shown, below()) {
			all = append(all, w.Text)
		}
		if got := strings.Join(all, " "); !strings.Contains(got, text) || strings.Count(got, "Work is") != 1 {
			return fmt.Errorf("on the screen is %q", got)
		}
		return nil
	})
}

// icons wants the six icons to have been seen, and draws them side by side.
func (s *screen) icons() {
	s.t.Helper()
	if len(s.pictures) != 6 {
		s.t.Errorf("there were %d icons", len(s.pictures))
	}
	sheet := image.NewNRGBA(image.Rect(0, 0, 72*len(s.pictures), 72))
	draw.Draw(sheet, sheet.Rect, image.White, image.Point{}, draw.Src)
	for i, picture := range s.pictures {
		draw.Draw(sheet, picture.Rect.Add(image.Pt(72*i+4, 4)), picture, image.Point{}, draw.Over)
	}
	if *update {
		desktop.Save(s.t, sheet, filepath.Join(harness.ModuleRoot(s.t), "docs/images/tray-icons.png"))
	}
}
