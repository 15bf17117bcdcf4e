package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		text string
		want limits
		err  string // part of it; empty: none
	}{
		{"", limits{}, ""},
		{"[limits]\nconfigs-per-user = 5\nconfigs = 9\n", limits{5, 9}, ""},
		{"# nothing\n[limits]\n", limits{}, ""},
		{"[limits]\nconfigs = -1\n", limits{}, "limits.configs is -1"},
		{"[limits]\nconfigs = 1000000\n", limits{}, "limits.configs is 1000000"},
		{"[limits]\n\nconfigs = \"many\"\n", limits{}, "vpnproviderd.toml:3: limits.configs"},
		{"[limits]\ntunnels = 1\n", limits{}, "vpnproviderd.toml:2: there is no key limits.tunnels"},
		{"[other]\n", limits{}, "there is no key other"},
		{"nonsense", limits{}, "vpnproviderd.toml:1"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "vpnproviderd.toml"), []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := readLimits(dir)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %+v, %v", tt.text, got, err)
		}
	}
	if got, err := readLimits(t.TempDir()); err != nil || got != (limits{}) {
		t.Errorf("without a file: %+v, %v", got, err)
	}
}
