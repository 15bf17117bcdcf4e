package ui

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Clean makes what somebody else wrote fit for one line: nothing of it reaches
// a terminal as a command, and nothing breaks the line.
func Clean(text string) string { return strings.Map(visible, text) }

// CleanLines is Clean for what may have several lines, and tabs.
func CleanLines(text string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '\n', '\t':
			return r
		}
		return visible(r)
	}, text)
}

func visible(r rune) rune {
	if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
		return unicode.ReplacementChar
	}
	return r
}

// Size is a number of bytes for people, with so many decimals.
func Size(bytes uint64, decimals int) string {
	const step = 1024
	if bytes < step {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/step, "KiB"
	for _, larger := range []string{"MiB", "GiB", "TiB"} {
		if value < step {
			break
		}
		value, unit = value/step, larger
	}
	return fmt.Sprintf("%.*f %s", decimals, value, unit)
}

// JSON prints a value on several lines.
func JSON(to io.Writer, value any) error {
	e := json.NewEncoder(to)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(value)
}
