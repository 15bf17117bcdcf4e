package icon_test

import (
	"image"
	"testing"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/icon"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
)

var all = []model.Icon{model.Disconnected, model.Connecting, model.Connected, model.Reconnecting, model.Failed, model.Lockdown}

// Every state has a picture of its own, also for those who see no colours.
func TestPicturesDiffer(t *testing.T) {
	for i, a := range all {
		for _, b := range all[i+1:] {
			for n, one := range icon.Sizes(a) {
				differ, size := differing(one, icon.Sizes(b)[n]), one.Rect.Dx()
				if differ < size*size/50 {
					t.Errorf("icons %d and %d of %d pixels differ in %d without their colours", a, b, size, differ)
				}
			}
		}
	}
}

// differing counts the pixels in which two icons differ in shape: covered or
// not, of the shield or of its mark.
func differing(a, b *image.NRGBA) (n int) {
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
	for y := range a.Rect.Dy() {
		for x := range a.Rect.Dx() {
			if kind(a, x, y) != kind(b, x, y) {
				n++
			}
		}
	}
	return n
}

func BenchmarkSizes(b *testing.B) {
	for b.Loop() {
		icon.Sizes(model.Reconnecting)
	}
}
