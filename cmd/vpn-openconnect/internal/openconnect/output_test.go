package openconnect

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEvents(t *testing.T) {
	const realOutput = "POST https://192.0.2.1/\n" + // openconnect 9.01 against ocserv 1.1.6
		"SSL negotiation with 192.0.2.1\n" +
		"Connected to HTTPS on 192.0.2.1 with ciphersuite (TLS1.3)-(ECDHE-SECP256R1)\n" +
		"Got CONNECT response: HTTP/1.1 200 CONNECTED\n" +
		"CSTP Dead Peer Detection detected dead peer!\n" +
		"[2026-11-22 13:23:02] Failed to reconnect to host 192.0.2.1: Network is unreachable\n" +
		"[2026-11-22 13:23:02] sleep 20s, remaining timeout 290s\n" +
		"[2026-11-22 13:23:15] Connected to HTTPS on 192.0.2.1 with ciphersuite x\n" +
		"Detected MTU of 1390 bytes (was 1434)\n" +
		"Detected MTU of many bytes\n" +
		"execl: Argument list too long\n" +
		"Connected to HTTPS on " + "x" // no line end: not yet
	want := []Event{
		{Kind: Reached},
		{Kind: Reached},
		{Kind: MTUChanged, MTU: 1390},
		{Kind: NoScript},
	}
	for _, size := range []int{1, 7, len(realOutput)} {
		var got []Event
		var copied bytes.Buffer
		w := &watcher{out: &copied, report: func(e Event) { got = append(got, e) }}
		for rest := realOutput; rest != ""; {
			n := min(size, len(rest))
			if _, err := w.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d bytes a time (-want +got):\n%s", size, diff)
		}
		if copied.String() != realOutput {
			t.Errorf("%d bytes a time: copied %q", size, copied.String())
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("no terminal") }

// TestOutputIsBounded: neither a line without end nor a lost terminal does
// harm.
func TestOutputIsBounded(t *testing.T) {
	var got []Event
	w := &watcher{out: broken{}, report: func(e Event) { got = append(got, e) }}
	text := []byte(strings.Repeat("x", 1<<20))
	if n, err := w.Write(text); n != len(text) || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if len(w.line) > maxLine {
		t.Errorf("%d bytes of a line are kept", len(w.line))
	}
	_, _ = w.Write([]byte("\nexecl: x\n"))
	if len(got) != 1 {
		t.Errorf("events %v", got)
	}
}

func TestEnv(t *testing.T) {
	owned := func(name string) bool { return name == "CISCO_SPLIT_INC" }
	for _, tt := range []struct{ in, want []string }{
		{
			[]string{"PATH=/bin", "LANG=de_DE.UTF-8", "LC_TIME=C", "LC_MESSAGES=de_DE", "CISCO_SPLIT_INC=1"},
			[]string{"PATH=/bin", "LANG=de_DE.UTF-8", "LC_TIME=C", "LC_MESSAGES=C"},
		},
		{
			[]string{"LC_ALL=de_DE@euro", "LANG=C", "LC_CTYPE=C", "PATH=/bin"},
			[]string{"PATH=/bin", "LANG=de_DE@euro", "LC_MESSAGES=C"},
		},
		{[]string{"LC_ALL=", "LANG=fr_FR"}, []string{"LANG=fr_FR", "LC_MESSAGES=C"}},
	} {
		if diff := cmp.Diff(tt.want, Env(tt.in, owned)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.in, diff)
		}
	}
}
