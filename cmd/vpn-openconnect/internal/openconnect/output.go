package openconnect

import (
	"bytes"
	"io"
	"strconv"
)

// Event is something that openconnect's output tells. The output also has
// texts of the server's, so an event is a hint: act on it only where a false
// one does no harm.
type Event struct {
	Kind EventKind
	MTU  int // of MTUChanged, bytes
}

// EventKind is what an Event is about.
type EventKind int

// The kinds.
const (
	Reached    EventKind = iota + 1 // the server, for the first time or again
	MTUChanged                      // packets must not be longer from now on
	NoScript                        // the script could not be started
)

// watcher copies to out, and reports what whole lines say.
type watcher struct {
	out    io.Writer
	report func(Event)
	line   []byte // so far, at most maxLine
}

const maxLine = 256

// Write never fails, see Options.
func (w *watcher) Write(p []byte) (int, error) {
	_, _ = w.out.Write(p)
	for rest := p; len(rest) > 0; {
		head, tail, ended := bytes.Cut(rest, []byte{'\n'})
		if room := maxLine - len(w.line); room > 0 {
			w.line = append(w.line, head[:min(room, len(head))]...)
		}
		if ended {
			if e, ok := eventOf(w.line); ok {
				w.report(e)
			}
			w.line = w.line[:0]
		}
		rest = tail
	}
	return len(p), nil
}

// eventOf reads a line as openconnect 9 writes it in English. The texts are
// those that all its protocols share.
func eventOf(line []byte) (Event, bool) {
	line = bytes.TrimRight(withoutTime(line), "\r")
	switch {
	case bytes.HasPrefix(line, []byte("Connected to HTTPS on ")):
		return Event{Kind: Reached}, true
	case bytes.HasPrefix(line, []byte("execl: ")):
		return Event{Kind: NoScript}, true
	}
	if rest, ok := bytes.CutPrefix(line, []byte("Detected MTU of ")); ok {
		digits, _, _ := bytes.Cut(rest, []byte{' '})
		if mtu, err := strconv.Atoi(string(digits)); err == nil {
			return Event{Kind: MTUChanged, MTU: mtu}, true
		}
	}
	return Event{}, false
}

// withoutTime cuts off what --timestamp puts first: [2026-01-31 13:59:59].
func withoutTime(line []byte) []byte {
	const stamp = len("[2026-01-31 13:59:59] ")
	if len(line) > stamp && line[0] == '[' && line[stamp-2] == ']' {
		return line[stamp:]
	}
	return line
}
