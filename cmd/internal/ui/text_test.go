package ui

import "testing"

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"Größe 1":       "Größe 1",
		"a\x1b[2Jb\x07": "a\ufffd[2Jb\ufffd",
		"a\nb\tc":       "a\ufffdb\ufffdc",
		"a\u202eb":      "a\ufffdb",
		"a\u2028b\x9bc": "a\ufffdb\ufffdc",
		"a\u2029b":      "a\ufffdb",
	} {
		if got := Clean(text); got != want {
			t.Errorf("Clean(%q) = %q, want %q", text, got, want)
		}
	}
	if got := CleanLines("a\n\x1bb\r\n"); got != "a\n\ufffdb\ufffd\n" {
		t.Errorf("CleanLines: %q", got)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 << 20: "5.0 MiB", 3 << 40: "3.0 TiB", 9 << 50: "9216.0 TiB",
	} {
		if got := Size(n, 1); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	if got := Size(3261071, 2); got != "3.11 MiB" {
		t.Errorf("with two decimals %q", got)
	}
}
