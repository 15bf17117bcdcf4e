package desktop

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// Screen is an X server whose picture is in memory.
type Screen struct {
	// Display is what programs have in DISPLAY.
	Display string

	file string
}

// StartScreen starts an X server without a network, on a display that no other
// has. It ends with the test.
func StartScreen(t testing.TB, width, height int) *Screen {
	t.Helper()
	dir := t.TempDir()
	p := Start(t, nil, "Xvfb", "-displayfd", "1", "-screen", "0", fmt.Sprintf("%dx%dx24", width, height), "-nolisten", "tcp", "-wr", "-fbdir", dir)
	number := regexp.MustCompile(`(?m)^(\d+)$`)
	var display string
	harness.Eventually(t, harness.Timeout, "the X server is ready", func() error {
		if err := p.Running(); err != nil {
			t.Fatal(err)
		}
		found := number.FindString(p.Output())
		if found == "" {
			return errors.New(p.Output())
		}
		display = ":" + found
		return nil
	})
	return &Screen{Display: display, file: filepath.Join(dir, "Xvfb_screen0")}
}

// Shot is what is on the screen, which Xvfb keeps in the format of xwd(1).
func (s *Screen) Shot() (*image.RGBA, error) {
	raw, err := os.ReadFile(s.file)
	if err != nil {
		return nil, err
	}
	var h struct {
		HeaderSize, Version, Format, Depth, Width, Height, XOffset, ByteOrder uint32
		Unit, BitOrder, Pad, BitsPerPixel, BytesPerLine                       uint32
		Class, Red, Green, Blue, BitsPerRGB, Entries, Colours                 uint32
	}
	if err := binary.Read(bytes.NewReader(raw), binary.BigEndian, &h); err != nil {
		return nil, err
	}
	pixels := raw[h.HeaderSize+12*h.Colours:]
	if h.BitsPerPixel != 32 || h.ByteOrder != 0 || len(pixels) < int(h.BytesPerLine*h.Height) {
		return nil, fmt.Errorf("a screen of another kind: %+v", h)
	}
	img := image.NewRGBA(image.Rect(0, 0, int(h.Width), int(h.Height)))
	for y := range int(h.Height) {
		line := pixels[y*int(h.BytesPerLine):]
		for x := range int(h.Width) {
			img.SetRGBA(x, y, color.RGBA{line[4*x+2], line[4*x+1], line[4*x], 0xff})
		}
	}
	return img, nil
}

// Settled waits until the screen has shown the same for a moment, and differs
// from before, where that is not nil.
func (s *Screen) Settled(t testing.TB, before *image.RGBA) *image.RGBA {
	t.Helper()
	const moment = 300 * time.Millisecond
	var last *image.RGBA
	since := time.Now()
	harness.Eventually(t, harness.Timeout, "the screen is still", func() error {
		img, err := s.Shot()
		if err != nil {
			return err
		}
		if last == nil || !bytes.Equal(img.Pix, last.Pix) {
			last, since = img, time.Now()
		}
		switch {
		case before != nil && bytes.Equal(img.Pix, before.Pix):
			return errors.New("it shows the same as before")
		case time.Since(since) < moment:
			return errors.New("it changes")
		}
		return nil
	})
	return last
}

// Click moves the pointer and presses its first button.
func (s *Screen) Click(t testing.TB, at image.Point) {
	t.Helper()
	s.do(t, "mousemove", strconv.Itoa(at.X), strconv.Itoa(at.Y), "click", "1")
}

// Point moves the pointer.
func (s *Screen) Point(t testing.TB, at image.Point) {
	t.Helper()
	s.do(t, "mousemove", strconv.Itoa(at.X), strconv.Itoa(at.Y))
}

// Key presses a key.
func (s *Screen) Key(t testing.TB, name string) {
	t.Helper()
	s.do(t, "key", name)
}

func (s *Screen) do(t testing.TB, args ...string) {
	t.Helper()
	cmd := exec.Command("xdotool", args...)
	cmd.Env = append(os.Environ(), "DISPLAY="+s.Display)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("xdotool %q: %v\n%s", args, err, out)
	}
}

// Find is the middle of the pixels of a colour, or near it, in a part of a
// picture, and how many there are.
func Find(img *image.RGBA, part image.Rectangle, c color.RGBA, near int) (middle image.Point, n int) {
	differ := func(a, b uint8) bool { return max(a, b)-min(a, b) > uint8(near) }
	for y := part.Min.Y; y < part.Max.Y; y++ {
		for x := part.Min.X; x < part.Max.X; x++ {
			if p := img.RGBAAt(x, y); !differ(p.R, c.R) && !differ(p.G, c.G) && !differ(p.B, c.B) {
				middle = middle.Add(image.Pt(x, y))
				n++
			}
		}
	}
	if n > 0 {
		middle = middle.Div(n)
	}
	return middle, n
}

// Word is one that can be read on the screen, and where.
type Word struct {
	Text string
	At   image.Rectangle
}

// magnify is by how much letters are made larger to be read well.
const magnify = 4

// Read reads the words in a part of a picture, by OCR.
func Read(t testing.TB, img *image.RGBA, part image.Rectangle) []Word {
	t.Helper()
	part = part.Intersect(img.Rect)
	large := image.NewGray(image.Rect(0, 0, magnify*part.Dx(), magnify*part.Dy()))
	for y := range large.Rect.Dy() {
		for x := range large.Rect.Dx() {
			c := color.GrayModel.Convert(img.RGBAAt(part.Min.X+x/magnify, part.Min.Y+y/magnify)).(color.Gray)
			large.SetGray(x, y, color.Gray{(max(c.Y, 128) - 128) * 2}) // grey letters, too, are black
		}
	}
	var in, out, complaints bytes.Buffer
	if err := png.Encode(&in, large); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tesseract", "stdin", "stdout", "--psm", "6", "--dpi", "300", "tsv")
	cmd.Env = append(os.Environ(), "OMP_THREAD_LIMIT=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &complaints
	if err := cmd.Run(); err != nil {
		t.Fatalf("tesseract: %v\n%s", err, &complaints)
	}
	var words []Word
	for line := range strings.Lines(out.String()) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(f) != 12 || f[0] != "5" || strings.TrimSpace(f[11]) == "" {
			continue // not a word
		}
		var n [4]int
		for i := range n {
			n[i], _ = strconv.Atoi(f[6+i])
		}
		at := image.Rect(n[0]/magnify, n[1]/magnify, (n[0]+n[2])/magnify, (n[1]+n[3])/magnify)
		words = append(words, Word{f[11], at.Add(part.Min)})
	}
	return words
}

// Save writes a picture as PNG.
func Save(t testing.TB, img image.Image, file string) {
	t.Helper()
	var b bytes.Buffer
	err := png.Encode(&b, img)
	if err == nil {
		err = os.WriteFile(file, b.Bytes(), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
