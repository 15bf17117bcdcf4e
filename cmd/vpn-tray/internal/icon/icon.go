// Package icon draws the pictures of the tray: a shield, whose mark tells the
// state also to those who do not see its colour.
package icon

import (
	"image"
	"image/color"
	"math"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
)

// Sizes is the picture of a state as panels of different heights want it.
func Sizes(of model.Icon) []*image.NRGBA {
	return []*image.NRGBA{Draw(of, 22), Draw(of, 32), Draw(of, 64)}
}

// Draw draws the picture of a state, size pixels wide and high.
func Draw(of model.Icon, size int) *image.NRGBA {
	fill, mark := Colour(of), marks(of)
	img := image.NewNRGBA(image.Rect(0, 0, size, size))
	for y := range size {
		for x := range size {
			img.SetNRGBA(x, y, pixel(float64(x)/float64(size), float64(y)/float64(size), 1/float64(size), fill, mark))
		}
	}
	return img
}

// Colour is that of a state's shield, seen on dark panels and on light ones.
func Colour(of model.Icon) color.NRGBA {
	switch of {
	case model.Connected:
		return color.NRGBA{0x2b, 0x9a, 0x41, 0xff}
	case model.Connecting, model.Reconnecting:
		return color.NRGBA{0xd4, 0x88, 0x06, 0xff}
	case model.Failed:
		return color.NRGBA{0xd0, 0x31, 0x2d, 0xff}
	case model.Lockdown:
		return color.NRGBA{0x5b, 0x4f, 0xc9, 0xff}
	default:
		return color.NRGBA{0x90, 0x96, 0x9c, 0xff}
	}
}

// samples is how many points a side are looked at for one pixel.
const samples = 4

// pixel is the mean of what is seen in a square.
func pixel(left, top, side float64, fill color.NRGBA, mark shape) color.NRGBA {
	var covered, white float64
	for i := range samples * samples {
		x := left + side*(float64(i%samples)+0.5)/samples
		y := top + side*(float64(i/samples)+0.5)/samples
		switch {
		case !shield(x, y):
		case mark == nil && shield(0.5+(x-0.5)/0.72, 0.48+(y-0.48)/0.76): // hollow
		case mark != nil && mark(x, y):
			white++
			covered++
		default:
			covered++
		}
	}
	if covered == 0 {
		return color.NRGBA{}
	}
	blend := func(c uint8) uint8 {
		return uint8(math.Round((255*white + float64(c)*(covered-white)) / covered))
	}
	return color.NRGBA{blend(fill.R), blend(fill.G), blend(fill.B), uint8(math.Round(255 * covered / (samples * samples)))}
}

// shape says which points, from 0 to 1 each way, are in it.
type shape func(x, y float64) bool

func shield(x, y float64) bool {
	const top, waist, tip, half = 0.05, 0.48, 0.97, 0.40
	width := half
	switch {
	case y < top || y > tip:
		return false
	case y > waist:
		width *= 1 - math.Pow((y-waist)/(tip-waist), 2.2)
	}
	return math.Abs(x-0.5) <= width
}

// marks is what stands on a state's shield; nil: nothing, and it is hollow.
func marks(of model.Icon) shape {
	switch of {
	case model.Connecting:
		return anyOf(disc(0.29, 0.45, 0.07), disc(0.5, 0.45, 0.07), disc(0.71, 0.45, 0.07))
	case model.Connected:
		return anyOf(line(0.29, 0.46, 0.44, 0.62), line(0.44, 0.62, 0.71, 0.31))
	case model.Reconnecting: // round and round
		open := func(x, y float64) bool { return x > 0.5 && y < 0.45 && y > 0.45-(x-0.5) }
		return anyOf(but(ring(0.5, 0.45, 0.19), open), triangle(0.56, 0.44, 0.82, 0.44, 0.69, 0.25))
	case model.Failed:
		return anyOf(line(0.5, 0.24, 0.5, 0.50), disc(0.5, 0.70, 0.065))
	case model.Lockdown:
		lower := func(_, y float64) bool { return y > 0.42 }
		body := func(x, y float64) bool { return math.Abs(x-0.5) < 0.2 && y > 0.42 && y < 0.70 }
		return anyOf(body, but(ring(0.5, 0.38, 0.12), lower))
	default:
		return nil
	}
}

// pen is half the width of lines.
const pen = 0.052

func anyOf(all ...shape) shape {
	return func(x, y float64) bool {
		for _, in := range all {
			if in(x, y) {
				return true
			}
		}
		return false
	}
}

func but(in, out shape) shape {
	return func(x, y float64) bool { return in(x, y) && !out(x, y) }
}

func disc(cx, cy, r float64) shape {
	return func(x, y float64) bool { return math.Hypot(x-cx, y-cy) <= r }
}

func ring(cx, cy, r float64) shape {
	return func(x, y float64) bool { return math.Abs(math.Hypot(x-cx, y-cy)-r) <= pen }
}

func line(x0, y0, x1, y1 float64) shape {
	dx, dy := x1-x0, y1-y0
	return func(x, y float64) bool {
		along := ((x-x0)*dx + (y-y0)*dy) / (dx*dx + dy*dy)
		along = min(max(along, 0), 1)
		return math.Hypot(x-x0-along*dx, y-y0-along*dy) <= pen
	}
}

// triangle has its corners in the order of the clock's hands, or against it.
func triangle(ax, ay, bx, by, cx, cy float64) shape {
	side := func(x0, y0, x1, y1, x, y float64) bool { return (x1-x0)*(y-y0)-(y1-y0)*(x-x0) >= 0 }
	return func(x, y float64) bool {
		one := side(ax, ay, bx, by, x, y)
		return one == side(bx, by, cx, cy, x, y) && one == side(cx, cy, ax, ay, x, y)
	}
}
