package desktop

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// gnomeVariable is where tests in GNOME leave their pictures; they run only where
// that is set. GNOME takes minutes to install: they are for people who look.
const gnomeVariable = "VPNPROVIDER_TEST_GNOME"

// gnome starts GNOME Shell and a program in it. It shows one picture for each line
// that it is given: a file, and what is done before.
const gnome = `export DISPLAY=:98 LIBGL_ALWAYS_SOFTWARE=1 XDG_CURRENT_DESKTOP=GNOME GNOME_SHELL_SESSION_MODE=user NO_AT_BRIDGE=1
export XDG_RUNTIME_DIR=/run/user/$(id -u) DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$(id -u)/bus
cd /tmp
Xvfb $DISPLAY -screen 0 1280x800x24 -nolisten tcp >/tmp/xvfb.log 2>&1 &
until xdotool getdisplaygeometry >/dev/null 2>&1; do sleep 0.1; done
gsettings set org.gnome.desktop.interface enable-animations false || :
%s
MUTTER_DEBUG_DUMMY_MODE_SPECS=1200x720 gnome-shell --nested --wayland --no-x11 >/tmp/gnome.log 2>&1 &
until gdbus call --session -d org.freedesktop.DBus -o / -m org.freedesktop.DBus.NameHasOwner org.gnome.Shell 2>/dev/null | grep -q true; do sleep 0.1; done
%s >/tmp/program.log 2>&1 &
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

// GNOME is GNOME Shell, 1200 by 720, on a screen of a container.
type GNOME struct {
	c      *container.Container
	shell  *container.Process
	folder string
}

// GNOMEFolder is where its pictures go. Where there is none the test is skipped.
func GNOMEFolder(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(gnomeVariable)
	if dir == "" {
		t.Skip(gnomeVariable + " names no folder for pictures")
	}
	harness.Require(t, "systemd-nspawn", "mmdebstrap", "tesseract")
	return dir
}

// GNOMEPackages are those that it needs.
func GNOMEPackages() []string {
	return []string{"gnome-shell", "libgl1-mesa-dri", "adwaita-icon-theme", "fonts-dejavu-core", "xvfb", "xdotool", "scrot", "dbus-user-session"}
}

// StartGNOME starts it, and waits until it is there. settings is a script that
// runs before, and program a command that runs in it; how is the command of a
// user's that runs a script.
func StartGNOME(t testing.TB, c *container.Container, folder, settings, program string, how func(script string) container.Command) *GNOME {
	t.Helper()
	c.WriteFile(t, "/opt/gnome", fmt.Sprintf(gnome, settings, program), 0o755)
	g := &GNOME{c: c, folder: folder, shell: c.Start(t, how("sh /opt/gnome"))}
	g.shell.Await(t, "ready\n")
	return g
}

// Look is what is to be seen after actions, a script. The picture is kept.
func (g *GNOME) Look(t testing.TB, picture, actions string) *image.RGBA {
	t.Helper()
	if _, err := g.shell.Write([]byte(picture + " " + actions + "\n")); err != nil {
		t.Fatal(err)
	}
	g.shell.Await(t, picture+" taken\n")
	f, err := os.Open(g.c.Root() + "/tmp/" + picture + ".png")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	out := image.NewRGBA(img.Bounds())
	draw.Draw(out, out.Rect, img, image.Point{}, draw.Src)
	Save(t, out, filepath.Join(g.folder, picture+".png"))
	return out
}

// ReadBright is Read for words that are brighter than what is behind them. What is
// as dark as dark is left out.
func ReadBright(t testing.TB, img *image.RGBA, part image.Rectangle, dark int) []Word {
	t.Helper()
	page := image.NewRGBA(img.Rect)
	for y := part.Min.Y; y < part.Max.Y; y++ {
		for x := part.Min.X; x < part.Max.X; x++ {
			shade := max(int(color.GrayModel.Convert(img.RGBAAt(x, y)).(color.Gray).Y), dark) - dark
			page.Set(x, y, color.Gray{uint8(0xff - shade*0xff/(0xff-dark))})
		}
	}
	return Read(t, page, part)
}
