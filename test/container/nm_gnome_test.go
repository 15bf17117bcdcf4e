package container_test

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// gnomeVariable is where TestGNOME leaves its pictures; it runs only where that
// is set. GNOME takes minutes to install, and shows what TestNetworkManager
// tests without it: so it is for people who look.
const gnomeVariable = "VPNPROVIDER_TEST_GNOME"

// gnomePackages are GNOME's own network menu, on a screen of no machine.
func gnomePackages() []string {
	return []string{"gnome-shell", "libgl1-mesa-dri", "adwaita-icon-theme", "fonts-dejavu-core", "gir1.2-nm-1.0", "gir1.2-nma-1.0", "xvfb", "xdotool", "scrot"}
}

// shell starts it in the session, and says when it is there. It shows one
// picture for each line that it is given: a file, and what is done before.
const shell = `export DISPLAY=:98 LIBGL_ALWAYS_SOFTWARE=1 XDG_CURRENT_DESKTOP=GNOME GNOME_SHELL_SESSION_MODE=user NO_AT_BRIDGE=1
export XDG_RUNTIME_DIR=/run/user/$(id -u) DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$(id -u)/bus
cd /tmp
Xvfb $DISPLAY -screen 0 1280x800x24 -nolisten tcp >/tmp/xvfb.log 2>&1 &
until xdotool getdisplaygeometry >/dev/null 2>&1; do sleep 0.1; done
gsettings set org.gnome.desktop.interface enable-animations false || :
MUTTER_DEBUG_DUMMY_MODE_SPECS=1200x720 gnome-shell --nested --wayland --no-x11 >/tmp/gnome.log 2>&1 &
until gdbus call --session -d org.freedesktop.DBus -o / -m org.freedesktop.DBus.NameHasOwner org.gnome.Shell 2>/dev/null | grep -q true; do sleep 0.1; done
sleep 5
echo ready
while read -r picture actions; do
	eval "$actions"
	sleep 3
	scrot -o "/tmp/$picture.png"
	echo "$picture taken"
done
`

// TestGNOME: the quick settings have our config, by its name, and their switch
// ends its session. What is seen is read from the picture, by tesseract.
func TestGNOME(t *testing.T) {
	dir := os.Getenv(gnomeVariable)
	if dir == "" {
		t.Skip(gnomeVariable + " names no folder for pictures")
	}
	harness.Require(t, "systemd-nspawn", "mmdebstrap", "tesseract")
	d := newDesktop(t, buildNM(t), gnomePackages()...)
	d.wireguard("fabrikam")
	d.WriteFile(t, "/opt/shell", shell, 0o755)
	gnome := d.Start(t, ofUser(container.Alice, "sh /opt/shell"))
	gnome.Await(t, "ready\n")
	look := func(picture, actions string) string {
		t.Helper()
		if _, err := gnome.Write([]byte(picture + " " + actions + "\n")); err != nil {
			t.Fatal(err)
		}
		gnome.Await(t, picture+" taken\n")
		return readMenu(t, d.Root()+"/tmp/"+picture+".png", filepath.Join(dir, picture+".png"))
	}
	const toggle = "xdotool mousemove 880 169 click 1"
	look("before", "xdotool key Escape")
	d.must(container.Alice, "vpnctl connect fabrikam")
	d.awaitActive("fabrikam")
	if text := look("connected", "xdotool mousemove 1133 16 click 1"); !strings.Contains(text, "fabrikam") {
		t.Fatalf("the quick settings have no fabrikam, but\n%s", text)
	}
	look("switched-off", toggle)
	d.awaitState("fabrikam", "idle")
	look("switched-on", toggle)
	d.awaitState("fabrikam", "connected")
	d.requireSource(tunnelAddress)
}

// quickSettings is where they are on the picture, when open.
var quickSettings = image.Rect(792, 38, 1194, 208)

// readMenu copies a picture, and reads the words in the quick settings. They are
// white and small; tesseract likes black, and large.
func readMenu(t *testing.T, from, to string) string {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	const times, bright = 4, 180
	page := image.NewGray(image.Rect(0, 0, times*quickSettings.Dx(), times*quickSettings.Dy()))
	for y := range page.Rect.Dy() {
		for x := range page.Rect.Dx() {
			shade := color.GrayModel.Convert(picture.At(quickSettings.Min.X+x/times, quickSettings.Min.Y+y/times)).(color.Gray)
			if shade.Y < bright {
				page.SetGray(x, y, color.Gray{Y: 255})
			}
		}
	}
	file := filepath.Join(harness.TempDir(t), "page.png")
	var b bytes.Buffer
	if err := errors.Join(png.Encode(&b, page), os.WriteFile(file, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tesseract", file, "-", "--psm", "11").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
