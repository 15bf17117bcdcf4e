package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sessionOf has TCP streams up, with the values of each row round by round.
func sessionOf(rows map[string][]float64) *Session {
	s := &Session{}
	for row, values := range rows {
		for round, v := range values {
			s.Add(Measurement{Kind: TCP, Row: row, Direction: Up, Round: round, Value: v, Cost: 1 / v})
		}
	}
	return s
}

func verdict(t *testing.T, s *Session, text string) Verdict {
	t.Helper()
	for _, v := range s.Verdicts() {
		if v.Text == text {
			return v
		}
	}
	t.Fatalf("there is no verdict on %s", text)
	return Verdict{}
}

// A ratio is of what was measured in the same round, and the median is of the
// ratios.
func TestVerdictOfRatio(t *testing.T) {
	s := sessionOf(map[string][]float64{B1: {1, 2, 4}, Packet: {2.2, 3.8, 7.2}})
	v := verdict(t, s, "`packet`, TCP, against B1")
	if got := fmt.Sprintf("%.2f %.2f", v.Median, v.Best); got != "1.90 2.20" || v.Direction != Up || v.Noisy {
		t.Errorf("median and best %s, %+v", got, v)
	}
	for _, c := range []struct {
		bar  float64
		want bool
	}{{2.0, true}, {2.11, true}, {2.15, false}, {2.3, false}} {
		if v.Met(c.bar) != c.want {
			t.Errorf("it meets %v: %v", c.bar, !c.want)
		}
	}
	if word := v.word(); word != "must" {
		t.Errorf("the word is %q", word)
	}
}

// Where less is better, the best is the least.
func TestVerdictOfLess(t *testing.T) {
	s := &Session{}
	for round, ms := range []float64{9, 11, 12} {
		s.Add(Measurement{Kind: Connect, Row: Daemon, Round: round, Value: ms, Foreign: float64(round)})
	}
	v := verdict(t, s, "Connect and SetParameters with 10 routes, p50")
	if v.Median != 11 || v.Best != 9 || !v.Noisy || v.word() != "must, noisy" {
		t.Errorf("%+v: %s", v, v.word())
	}
	s.Add(Measurement{Kind: Connect, Row: Daemon, Round: 3, Value: 13})
	s.Add(Measurement{Kind: Connect, Row: Daemon, Round: 4, Value: 14})
	if v = verdict(t, s, v.Text); v.word() != "missed, noisy" {
		t.Errorf("%+v: %s", v, v.word())
	}
}

// What was measured in some rounds alone counts in those.
func TestVerdictOfIncompleteRounds(t *testing.T) {
	s := sessionOf(map[string][]float64{B1: {1, 1, 1}, B4: {1, 1, 1}, Packet: {3}})
	v := verdict(t, s, "`packet`, TCP, against B1")
	if v.Rounds != 1 || v.Median != 3 {
		t.Errorf("%+v", v)
	}
	for _, v := range s.Verdicts() {
		if strings.Contains(v.Text, "offload") {
			t.Errorf("a verdict on what was not measured: %+v", v)
		}
	}
}

func TestFloor(t *testing.T) {
	s := &Session{}
	s.Add(Measurement{Kind: TCP, Row: Packet, Direction: Up, Cost: 4})
	s.Add(Measurement{Kind: TCP, Row: B3, Direction: Up, Cost: 1.5})
	s.Add(Measurement{Kind: SocketPair, Row: Bare, Cost: 1.5})
	if v := verdict(t, s, "processor time of B3 and a bare socket pair, against `packet`"); v.Median != 0.75 {
		t.Errorf("%+v", v)
	}
}

func TestFiles(t *testing.T) {
	s := sessionOf(map[string][]float64{B1: {1.5, 2}, Packet: {3, 4.2}})
	dir := t.TempDir()
	if err := s.WriteFiles(dir, "Here."); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		jsonFile: `{"kind":"tcp","row":"B1","direction":"up","round":0,"value":1.5,"cost":0.6666666666666666,"foreign":0,"tries":0}`,
		statFile: "BenchmarkTcp/B1/up 1 1.5 Gbit/s 0.6667 CPU-s/GB 0.00 foreign-cores",
		markFile: "| P1 | `packet`, TCP, against B1 | up | 2.05 | 2.1 | ≥ 2 | ≥ 2.7 | must |",
	} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(content), want+"\n") {
			t.Errorf("%s does not have %s:\n%s", name, want, content)
		}
	}
	document := filepath.Join(dir, "document")
	write := func(text string) {
		if err := os.WriteFile(document, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + begin + "old\n" + end + "after\n")
	for range 2 {
		if err := ReplaceIn(document, "new"); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(document); err != nil || string(got) != "before\n"+begin+"\nnew\n"+end+"after\n" {
		t.Errorf("%q, %v", got, err)
	}
	write("nothing to replace\n")
	if err := ReplaceIn(document, "new"); err == nil {
		t.Error("the lines were not missed")
	}
}

// The processor time of a process is its own, and what others use is foreign.
func TestUsage(t *testing.T) {
	own := func() time.Duration {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			t.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	self := []int{os.Getpid()}
	spin := func(counted, aside []int) (r Result, used time.Duration) {
		u, err := StartUsage(counted, aside)
		if err != nil {
			t.Fatal(err)
		}
		before := own()
		for own() < before+300*time.Millisecond {
		}
		used = own() - before
		if err := u.Stop(&r); err != nil {
			t.Fatal(err)
		}
		return r, used
	}
	// The kernel's threads count, too.
	if r, used := spin(self, nil); r.CPU < used || r.CPU > used+r.Elapsed/2 {
		t.Errorf("%v of processor time, and not %v", r.CPU, used)
	}
	if r, used := spin(nil, self); r.CPU > used/2 {
		t.Errorf("%v of processor time where %v are aside", r.CPU, used)
	}
	if r, used := spin(nil, nil); r.Foreign < used.Seconds()/r.Elapsed.Seconds()/2 {
		t.Errorf("%.2f processors of foreign work, where %v of %v are", r.Foreign, used, r.Elapsed)
	}
	if _, err := StartUsage([]int{1 << 22}, nil); err == nil {
		t.Error("a process that is not there has a time")
	}
}
