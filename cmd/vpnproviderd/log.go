package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// newLogger writes to the journal where stderr is connected to it, with the
// attributes as fields, and text to w elsewhere.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	if w == os.Stderr {
		if ok, err := journal.StderrIsJournalStream(); ok && err == nil {
			return slog.New(&journalHandler{level: level})
		}
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// journalHandler is a slog.Handler that sends to the journal. Attributes
// become fields with upper-case names; those that callers choose are values
// only, so none can forge a field or a line.
type journalHandler struct {
	level  slog.Level
	attrs  []slog.Attr
	prefix string
}

// Enabled is slog.Handler.
func (h *journalHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// Handle is slog.Handler.
func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	fields := make(map[string]string)
	var text strings.Builder
	text.WriteString(r.Message)
	add := func(prefix string, a slog.Attr) bool {
		name, value := prefix+a.Key, a.Value.Resolve().String()
		fields[strings.ToUpper(strings.ReplaceAll(name, ".", "_"))] = value
		fmt.Fprintf(&text, " %s=%q", name, value)
		return true
	}
	for _, a := range h.attrs {
		add("", a)
	}
	r.Attrs(func(a slog.Attr) bool { return add(h.prefix, a) })
	return journal.Send(text.String(), priority(r.Level), fields)
}

// WithAttrs is slog.Handler.
func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = append([]slog.Attr{}, h.attrs...)
	for _, a := range attrs {
		a.Key = h.prefix + a.Key
		c.attrs = append(c.attrs, a)
	}
	return &c
}

// WithGroup is slog.Handler.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.prefix += name + "."
	return &c
}

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
