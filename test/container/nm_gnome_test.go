package container_test

import (
	"fmt"
	"image"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
	gui "github.com/vpnprovider/vpnproviderd/test/screenshots/desktop"
)

// quickSettings is where they are on the picture, when open.
var quickSettings = image.Rect(792, 38, 1194, 208)

// TestGNOME: the quick settings have our config, by its name, and their switch
// ends its session: what TestNetworkManager tests without GNOME.
func TestGNOME(t *testing.T) {
	dir := gui.GNOMEFolder(t)
	d := newDesktop(t, buildNM(t), append(gui.GNOMEPackages(), "gir1.2-nm-1.0", "gir1.2-nma-1.0")...)
	d.wireguard("fabrikam")
	gnome := gui.StartGNOME(t, d.Container, dir, "", ":", func(script string) container.Command { return ofUser(container.Alice, script) })
	const toggle = "xdotool mousemove 880 169 click 1"
	gnome.Look(t, "before", "xdotool key Escape")
	d.must(container.Alice, "vpnctl connect fabrikam")
	d.awaitActive("fabrikam")
	words := gui.ReadBright(t, gnome.Look(t, "connected", "xdotool mousemove 1133 16 click 1"), quickSettings, 0x80)
	if !strings.Contains(fmt.Sprint(words), "fabrikam") {
		t.Fatalf("the quick settings have no fabrikam, but %v", words)
	}
	gnome.Look(t, "switched-off", toggle)
	d.awaitState("fabrikam", "idle")
	gnome.Look(t, "switched-on", toggle)
	d.awaitState("fabrikam", "connected")
	d.requireSource(tunnelAddress)
}
