package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// printer writes for people, with colour on a terminal that wants it, or JSON.
type printer struct {
	w        io.Writer
	terminal bool
	colour   bool
}

func newPrinter(w io.Writer) *printer {
	p := &printer{w: w}
	if f, ok := w.(*os.File); ok {
		p.terminal = ui.IsTerminal(f)
	}
	p.colour = p.terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return p
}

func (p *printer) line(format string, args ...any) {
	fmt.Fprintf(p.w, format+"\n", args...)
}

// jsonLine prints a value of a stream.
func (p *printer) jsonLine(v any) error {
	e := json.NewEncoder(p.w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table prints rows in aligned columns. The colour of a state does not count
// as width.
func (p *printer) table(header []string, rows [][]string) {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(ui.Clean(cell)))
		}
	}
	p.row(header, widths)
	for _, row := range rows {
		p.row(row, widths)
	}
}

func (p *printer) row(cells []string, widths []int) {
	var b strings.Builder
	for i, cell := range cells {
		text := ui.Clean(cell)
		b.WriteString(p.state(text))
		if i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2))
		}
	}
	p.line("%s", strings.TrimRight(b.String(), " "))
}

// field is a name and a value of a block.
type field struct{ name, value string }

// block prints fields below each other; empty ones are left out.
func (p *printer) block(indent string, fields []field) {
	width := 0
	for _, f := range fields {
		if f.value != "" {
			width = max(width, utf8.RuneCountInString(ui.Clean(f.name)))
		}
	}
	for _, f := range fields {
		if f.value != "" {
			name := ui.Clean(f.name)
			pad := strings.Repeat(" ", width-utf8.RuneCountInString(name)+2)
			p.line("%s%s:%s%s", indent, name, pad, p.state(ui.Clean(f.value)))
		}
	}
}

// state colours a text that is a state, and no other.
func (p *printer) state(text string) string {
	if !p.colour {
		return text
	}
	switch client.State(text) {
	case client.StateConnected:
		return "\x1b[32m" + text + "\x1b[0m"
	case client.StateFailed:
		return "\x1b[31m" + text + "\x1b[0m"
	case client.StateConnecting, client.StateConfigured, client.StateReconnecting, client.StateDisconnecting:
		return "\x1b[33m" + text + "\x1b[0m"
	default:
		return text
	}
}

// some is a list for one line; what is long is cut.
func some[T fmt.Stringer](values []T) string {
	const most = 8
	var texts []string
	for i, v := range values {
		if i == most {
			return fmt.Sprintf("%s and %d more", strings.Join(texts, ", "), len(values)-most)
		}
		texts = append(texts, v.String())
	}
	return strings.Join(texts, ", ")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
