package screenshots

import (
	"fmt"
	"image"
	"image/color"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
	"github.com/vpnprovider/vpnproviderd/test/screenshots/desktop"
)

// In GNOME Shell with the extension AppIndicator: the icon is in the top bar,
// and a click opens the menu, whose words can be read.
func TestTrayInGNOME(t *testing.T) {
	dir := desktop.GNOMEFolder(t)
	c := container.Start(t, container.Options{
		Packages: append(desktop.GNOMEPackages(), "gnome-shell-extension-appindicator", "libglib2.0-bin", "dconf-gsettings-backend"),
	})
	for _, program := range []string{"vpn-tray", "vpnctl", "vpnproviderd"} {
		c.CopyFile(t, container.Build(t, "./cmd/"+program), "/usr/bin/"+program, 0o755)
	}
	c.CopyFile(t, filepath.Join(harness.ModuleRoot(t), "dbus-policy/org.vpnprovider1.conf"), "/usr/share/dbus-1/system.d/org.vpnprovider1.conf", 0o644)
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

	const extension = `gsettings set org.gnome.shell disable-user-extensions false
gsettings set org.gnome.shell enabled-extensions "['ubuntu-appindicators@ubuntu.com']"`
	shell := desktop.StartGNOME(t, c, dir, extension, "vpn-tray", func(script string) container.Command {
		return container.Command{Argv: []string{"sh", "-c", script}, User: container.Alice, Seat: true}
	})
	// GNOME takes a little of the colour from icons.
	at, n := desktop.Find(shell.Look(t, "tray-gnome", ":"), image.Rect(600, 0, 1200, 32), color.RGBA{0x5b, 0x4f, 0xc9, 0xff}, 40)
	if n < 20 {
		t.Fatalf("%d pixels of the icon's colour, around %v", n, at)
	}
	img := shell.Look(t, "tray-gnome-menu", fmt.Sprintf("xdotool mousemove %d %d click 1", at.X, at.Y))
	var text []string
	for _, w := range desktop.ReadBright(t, img, image.Rect(at.X-260, 45, at.X+85, 310), 0) { // within its round frame
		text = append(text, w.Text)
	}
	for _, want := range []string{"Lockdown", "Work", "Home", "Settings", "Quit"} {
		if !strings.Contains(strings.Join(text, " "), want) {
			t.Errorf("no %q among %q", want, text)
		}
	}
}
