package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Names of the files that WriteFiles makes.
const (
	jsonFile = "bench.jsonl"
	statFile = "bench.txt"
	markFile = "bench.md"
)

// Line is the measurement as benchstat reads it.
func (m Measurement) Line() string {
	value, cost := m.Kind.Units()
	name := fmt.Sprintf("Benchmark%s%s/%s", strings.ToUpper(string(m.Kind[:1])), m.Kind[1:], m.Row)
	if m.Direction != None {
		name += "/" + string(m.Direction)
	}
	line := fmt.Sprintf("%s 1 %.5g %s", name, m.Value, value)
	if cost != "" {
		line += fmt.Sprintf(" %.4g %s", m.Cost, cost)
	}
	return line + fmt.Sprintf(" %.2f foreign-cores", m.Foreign)
}

// Units tell benchstat what is better.
func Units() string {
	var b strings.Builder
	for _, kind := range []Kind{TCP, Small, Trip, Connect, Memory, WakeUps} {
		value, cost := kind.Units()
		better := "lower"
		if cost != "" {
			fmt.Fprintf(&b, "Unit %s better=lower\n", cost)
			better = "higher"
		}
		fmt.Fprintf(&b, "Unit %s better=%s\n", value, better)
	}
	return b.String()
}

// Markdown has the bars, then the rows. The environment says what it was
// measured on.
func (s *Session) Markdown(environment string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", environment)
	if n := s.noisy(); n > 0 {
		fmt.Fprintf(&b, "**%d of %d measurements were disturbed by other work of the machine: their verdicts are not final.**\n\n", n, len(s.Measurements))
	}
	b.WriteString("| # | figure | | median | best | must | goal | |\n|---|---|---|---|---|---|---|---|\n")
	for _, v := range s.Verdicts() {
		goal := ""
		if v.Goal != 0 {
			goal = v.bar(v.Goal)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %.3g | %.3g | %s | %s | %s |\n",
			v.Name, v.Text, v.Direction, v.Median, v.Best, v.bar(v.Must), goal, v.word())
	}
	b.WriteString("\n| measured | row | | median | range | cost | foreign |\n|---|---|---|---|---|---|---|\n")
	for _, group := range s.groups() {
		b.WriteString(group)
	}
	return b.String()
}

func (s *Session) noisy() (n int) {
	for _, m := range s.Measurements {
		if m.Noisy() {
			n++
		}
	}
	return n
}

func (v Verdict) bar(value float64) string {
	sign := "≥"
	if v.Less {
		sign = "≤"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %g %s", sign, value, v.Unit))
}

func (v Verdict) word() string {
	word := "missed"
	switch {
	case v.Goal != 0 && v.Met(v.Goal):
		word = "goal"
	case v.Met(v.Must):
		word = "must"
	}
	if v.Noisy {
		word += ", noisy"
	}
	return word
}

// groups are the lines of the second table: a row of a kind in one direction
// each, in the order in which they were first measured.
func (s *Session) groups() (lines []string) {
	seen := map[string]bool{}
	for _, m := range s.Measurements {
		key := string(m.Kind) + "/" + m.Row + "/" + string(m.Direction)
		if seen[key] {
			continue
		}
		seen[key] = true
		var values, costs []float64
		foreign := 0.0
		for _, one := range s.rounds(m.Kind, m.Row, m.Direction) {
			values, costs = append(values, one.Value), append(costs, one.Cost)
			foreign = max(foreign, one.Foreign)
		}
		unit, costUnit := m.Kind.Units()
		cost := ""
		if costUnit != "" {
			cost = fmt.Sprintf("%.3g %s", Median(costs), costUnit)
		}
		noisy := ""
		if foreign > Foreign {
			noisy = ", noisy"
		}
		lines = append(lines, fmt.Sprintf("| %s | %s | %s | %.4g %s | %.4g to %.4g | %s | %.2f%s |\n", m.Kind, m.Row, m.Direction,
			Median(values), unit, slices.Min(values), slices.Max(values), cost, foreign, noisy))
	}
	return lines
}

// WriteFiles writes the session into a folder: as lines of JSON, for benchstat,
// and as Markdown.
func (s *Session) WriteFiles(dir, environment string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var lines, stat bytes.Buffer
	stat.WriteString(Units())
	encoder := json.NewEncoder(&lines)
	for _, m := range s.Measurements {
		if err := encoder.Encode(m); err != nil {
			return err
		}
		stat.WriteString(m.Line() + "\n")
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, jsonFile), lines.Bytes(), 0o644),
		os.WriteFile(filepath.Join(dir, statFile), stat.Bytes(), 0o644),
		os.WriteFile(filepath.Join(dir, markFile), []byte(s.Markdown(environment)), 0o644),
	)
}

// The lines between which ReplaceIn writes.
const (
	begin = "<!-- make bench writes from here -->\n"
	end   = "<!-- to here -->\n"
)

// ReplaceIn puts the text in place of what a document has between its marks.
func ReplaceIn(file, text string) error {
	document, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(document), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has not the two lines between which to write", file)
	}
	return os.WriteFile(file, []byte(before+begin+"\n"+text+"\n"+end+after), 0o644)
}
