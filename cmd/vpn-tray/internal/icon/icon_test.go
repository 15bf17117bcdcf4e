package icon_test

import (
	"bytes"
	"image"
	"image/png"
	"testing"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/icon"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
)

var all = []model.Icon{model.Disconnected, model.Connecting, model.Connected, model.Reconnecting, model.Failed, model.Lockdown}

// Every state has a picture of its own, also for those who see no colours.
func TestPicturesDiffer(t *testing.T) {
	for i, a := range all {
		img, err := png.Decode(bytes.NewReader(icon.PNG(a)))
		if err != nil || img.Bounds().Dx() != icon.Size || img.Bounds().Dy() != icon.Size {
			t.Fatalf("icon %d: %v", a, err)
		}
		for _, b := range all[i+1:] {
			if n := differing(a, b); n < icon.Size*icon.Size/50 {
				t.Errorf("icons %d and %d differ in %d pixels without their colours", a, b, n)
			}
		}
	}
}

// differing counts the pixels in which two icons differ in shape: covered or
// not, of the shield or of its mark.
func differing(a, b model.Icon) (n int) {
	one, other := icon.Draw(a), icon.Draw(b)
	kind := func(of *image.NRGBA, x, y int) int {
		switch c := of.NRGBAAt(x, y); {
		case c.A < 128:
			return 0
		case c.R > 200 && c.G > 200 && c.B > 200:
			return 1
		default:
			return 2
		}
	}
	for y := range icon.Size {
		for x := range icon.Size {
			if kind(one, x, y) != kind(other, x, y) {
				n++
			}
		}
	}
	return n
}

func BenchmarkPNG(b *testing.B) {
	for b.Loop() {
		icon.PNG(model.Reconnecting)
	}
}
