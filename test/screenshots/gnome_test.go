package screenshots

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
	"github.com/vpnprovider/vpnproviderd/test/screenshots/desktop"
)

// gnomeVariable is where TestTrayInGNOME leaves its pictures; it runs only where
// that is set: GNOME takes minutes to install.
const gnomeVariable = "VPNPROVIDER_TEST_GNOME"

// gnome runs GNOME Shell with the extension, and the tray in it. It shows one
// picture for each line that it is given: a file, and what is done before.
const gnome = `export DISPLAY=:98 LIBGL_ALWAYS_SOFTWARE=1 XDG_CURRENT_DESKTOP=GNOME GNOME_SHELL_SESSION_MODE=user NO_AT_BRIDGE=1
export XDG_RUNTIME_DIR=/run/user/$(id -u) DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$(id -u)/bus
cd /tmp
Xvfb $DISPLAY -screen 0 1280x800x24 -nolisten tcp >/tmp/xvfb.log 2>&1 &
until xdotool getdisplaygeometry >/dev/null 2>&1; do sleep 0.1; done
gsettings set org.gnome.desktop.interface enable-animations false
gsettings set org.gnome.shell disable-user-extensions false
gsettings set org.gnome.shell enabled-extensions "['ubuntu-appindicators@ubuntu.com']"
MUTTER_DEBUG_DUMMY_MODE_SPECS=1200x720 gnome-shell --nested --wayland --no-x11 >/tmp/gnome.log 2>&1 &
until gdbus call --session -d org.freedesktop.DBus -o / -m org.freedesktop.DBus.NameHasOwner org.gnome.Shell 2>/dev/null | grep -q true; do sleep 0.1; done
vpn-tray >/tmp/tray.log 2>&1 &
sleep 5
xdotool key Escape
echo ready
while read -r picture actions; do
	eval "$actions"
	sleep 3
	scrot -o "/tmp/$picture.png"
	echo "$picture taken"
done
`

// In GNOME Shell with the extension AppIndicator: the icon is in the top bar,
// and a click opens the menu, whose words can be read.
func TestTrayInGNOME(t *testing.T) {
	dir := os.Getenv(gnomeVariable)
	if dir == "" {
		t.Skip(gnomeVariable + " names no folder for pictures")
	}
	harness.Require(t, "systemd-nspawn", "mmdebstrap", "tesseract")
	c := container.Start(t, container.Options{Packages: []string{
		"gnome-shell", "gnome-shell-extension-appindicator", "libgl1-mesa-dri", "adwaita-icon-theme", "fonts-dejavu-core",
		"xvfb", "xdotool", "scrot", "dbus-user-session", "libglib2.0-bin", "dconf-gsettings-backend",
	}})
	for _, program := range []string{"vpn-tray", "vpnctl", "vpnproviderd"} {
		c.CopyFile(t, container.Build(t, "./cmd/"+program), "/usr/bin/"+program, 0o755)
	}
	c.CopyFile(t, filepath.Join(harness.ModuleRoot(t), "dbus-policy/org.vpnprovider1.conf"), "/usr/share/dbus-1/system.d/org.vpnprovider1.conf", 0o644)
	c.WriteFile(t, "/opt/gnome", gnome, 0o755)
	c.Run(t, "systemctl", "reload", "dbus")
	c.Run(t, "mkdir", "-p", "/run/v", "/var/lib/v", "/etc/v")
	c.Start(t, container.Command{Argv: []string{
		"vpnproviderd", "--authorization", "owner", "--resolver", "none", "--state-dir", "/var/lib/v", "--runtime-dir", "/run/v", "--config-dir", "/etc/v",
	}})
	harness.Eventually(t, harness.Timeout, "configs can be made", func() error {
		out, err := c.Output(container.Command{Argv: []string{"vpnctl", "create", "com.example.Demo", "Work"}, User: container.Alice})
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	c.RunAs(t, container.Alice, "vpnctl", "create", "com.example.Demo", "Home")
	c.Run(t, "sh", "-c", "vpnctl lockdown on Work") // an icon of a colour that nothing else there has

	shell := c.Start(t, container.Command{Argv: []string{"sh", "/opt/gnome"}, User: container.Alice, Seat: true})
	shell.Await(t, "ready\n")
	look := func(picture, actions string) *image.RGBA {
		t.Helper()
		if _, err := shell.Write([]byte(picture + " " + actions + "\n")); err != nil {
			t.Fatal(err)
		}
		shell.Await(t, picture+" taken\n")
		return keep(t, c.Root()+"/tmp/"+picture+".png", filepath.Join(dir, picture+".png"))
	}
	// GNOME takes a little of the colour from icons.
	at, n := desktop.Find(look("tray-gnome", ":"), image.Rect(600, 0, 1200, 32), color.RGBA{0x5b, 0x4f, 0xc9, 0xff}, 40)
	if n < 20 {
		t.Fatalf("%d pixels of the icon's colour, around %v", n, at)
	}
	img := look("tray-gnome-menu", fmt.Sprintf("xdotool mousemove %d %d click 1", at.X, at.Y))
	var text []string
	for _, w := range desktop.Read(t, invert(img), image.Rect(at.X-260, 45, at.X+85, 310)) { // within its round frame
		text = append(text, w.Text)
	}
	for _, want := range []string{"Lockdown", "Work", "Home", "Settings", "Quit"} {
		if !strings.Contains(strings.Join(text, " "), want) {
			t.Errorf("no %q among %q", want, text)
		}
	}
}

// keep copies a picture and returns it.
func keep(t *testing.T, from, to string) *image.RGBA {
	t.Helper()
	f, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(errors.Join(err, f.Close()))
	}
	out := image.NewRGBA(img.Bounds())
	draw.Draw(out, out.Rect, img, image.Point{}, draw.Src)
	desktop.Save(t, out, to)
	return out
}

// invert makes the white letters of GNOME black.
func invert(img *image.RGBA) *image.RGBA {
	out := image.NewRGBA(img.Rect)
	for i, v := range img.Pix {
		out.Pix[i] = 0xff - v
	}
	return out
}
