package platform

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/vpnprovider/vpnproviderd/driver/valid"
)

// Config is what one file says.
type Config struct {
	File                  string
	App, Name             string
	UID                   uint32 // of the user whose it is
	AutoConnect, Lockdown bool
	Data                  map[string]any // as valid.Data has it
}

// Problem is one thing that is wrong in a file.
type Problem struct {
	File string `json:"file"`
	Line int    `json:"line"` // from 1; 1 too where it is about the file as a whole
	Key  string `json:"key"`  // empty where it is about none
	Text string `json:"problem"`
}

// String is FILE:LINE: KEY: TEXT.
func (p Problem) String() string {
	if p.Key == "" {
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", p.File, p.Line, p.Key, p.Text)
}

// Parse reads the text of a file, which is named only in what it returns.
// lookup gives the uid of a user's name. All problems are named at once, but
// what is no TOML is one; with any the Config is of no use.
func Parse(file string, text []byte, lookup func(name string) (uint32, error)) (Config, []Problem) {
	p := parser{config: Config{File: file}, keys: offsets(text)}
	for i, c := range text {
		if c == '\n' {
			p.ends = append(p.ends, i)
		}
	}
	var all map[string]any
	if err := toml.Unmarshal(text, &all); err != nil {
		return p.config, []Problem{p.syntax(err)}
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		p.value(key, all[key], lookup)
	}
	for _, key := range []string{"app", "name", "user"} {
		if _, ok := all[key]; !ok {
			p.complain(key, "is missing")
		}
	}
	slices.SortStableFunc(p.problems, func(a, b Problem) int { return a.Line - b.Line })
	return p.config, p.problems
}

// syntax is the problem of what is no TOML, with the key where one can be told.
func (p *parser) syntax(err error) Problem {
	problem := Problem{File: p.config.File, Line: 1, Text: strings.TrimPrefix(err.Error(), "toml: ")}
	d, ok := errors.AsType[*toml.DecodeError](err)
	if !ok {
		return problem
	}
	problem.Line, _ = d.Position()
	last := -1
	for key, at := range p.keys {
		if p.line(key) == problem.Line && at > last {
			problem.Key, last = key, at
		}
	}
	return problem
}

// parser is one run of Parse.
type parser struct {
	config   Config
	keys     map[string]int // where each stands, see offsets
	ends     []int          // where the lines end
	problems []Problem
}

// complain notes a problem of a key, which may be one inside of data.
func (p *parser) complain(key, format string, args ...any) {
	p.problems = append(p.problems, Problem{File: p.config.File, Line: p.line(key), Key: key, Text: fmt.Sprintf(format, args...)})
}

// line of a key; the first for one that is not there.
func (p *parser) line(key string) int {
	before, _ := slices.BinarySearch(p.ends, p.keys[key])
	return 1 + before
}

func (p *parser) value(key string, value any, lookup func(string) (uint32, error)) {
	switch key {
	case "app":
		p.string(key, value, &p.config.App, valid.App)
	case "name":
		p.string(key, value, &p.config.Name, valid.Name)
	case "user":
		p.user(value, lookup)
	case "autoConnect":
		p.truth(key, value, &p.config.AutoConnect)
	case "lockdown":
		p.truth(key, value, &p.config.Lockdown)
	case "data":
		p.data(value)
	default:
		p.complain(key, "there is no such key")
	}
}

func (p *parser) string(key string, value any, to *string, check func(string) error) {
	text, ok := value.(string)
	if !ok {
		p.complain(key, "is %s, not a text in quotes", kind(value))
	} else if err := check(text); err != nil {
		p.complain(key, "%v", err)
	}
	*to = text
}

func (p *parser) truth(key string, value any, to *bool) {
	truth, ok := value.(bool)
	if !ok {
		p.complain(key, "is %s, not true or false", kind(value))
	}
	*to = truth
}

// user is a name or a number. The highest number means none to the kernel.
func (p *parser) user(value any, lookup func(string) (uint32, error)) {
	switch v := value.(type) {
	case int64:
		if v < 0 || v >= math.MaxUint32 {
			p.complain("user", "%d is no uid", v)
		}
		p.config.UID = uint32(v)
	case string:
		err := valid.Text("user", v)
		if err == nil {
			p.config.UID, err = lookup(v)
		}
		if err != nil {
			p.complain("user", "%v", err)
		}
	default:
		p.complain("user", "is %s, not a user's name or uid", kind(value))
	}
}

func (p *parser) data(value any) {
	table, ok := value.(map[string]any)
	if !ok {
		p.complain("data", "is %s, not a table", kind(value))
		return
	}
	before := len(p.problems)
	for _, key := range slices.Sorted(maps.Keys(table)) {
		p.dates("data."+key, table[key])
		if len(p.problems) > before {
			continue
		}
		if err := valid.Data(map[string]any{key: table[key]}); err != nil {
			p.complain("data."+key, "%v", err)
		}
	}
	if len(p.problems) == before {
		if err := valid.Data(table); err != nil {
			p.complain("data", "%v", err)
		}
	}
	p.config.Data = table
}

// dates complains of what D-Bus has no type for.
func (p *parser) dates(key string, value any) {
	switch v := value.(type) {
	case map[string]any:
		for _, inner := range slices.Sorted(maps.Keys(v)) {
			p.dates(key+"."+inner, v[inner])
		}
	case []any:
		for _, inner := range v {
			p.dates(key, inner)
		}
	case time.Time, toml.LocalDate, toml.LocalTime, toml.LocalDateTime:
		p.complain(key, "is a date or time, which apps cannot be given: put it in quotes")
	}
}

// kind is what people call a TOML value.
func kind(value any) string {
	switch value.(type) {
	case string:
		return "a text"
	case int64:
		return "a whole number"
	case float64:
		return "a number with a fraction"
	case bool:
		return "true or false"
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// offsets are where keys first stand in a file, up to a fault in it, by the parts of the key
// joined with dots. (Two keys that are the same then, by dots of their own,
// differ in no more than a line number.)
func offsets(text []byte) map[string]int {
	found := make(map[string]int)
	var p unstable.Parser
	p.Reset(text)
	var table []string
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = note(found, nil, e)
		case unstable.KeyValue:
			noteValue(found, note(found, table, e), e.Value())
		default: // no key
		}
	}
	return found
}

// note notes where the key of a node stands, and gives it with what is above.
func note(found map[string]int, above []string, node *unstable.Node) []string {
	path := slices.Clone(above)
	for it := node.Key(); it.Next(); {
		path = append(path, string(it.Node().Data))
		name := strings.Join(path, ".")
		if _, known := found[name]; !known {
			found[name] = int(it.Node().Raw.Offset)
		}
	}
	return path
}

func noteValue(found map[string]int, path []string, value *unstable.Node) {
	switch value.Kind {
	case unstable.InlineTable:
		for it := value.Children(); it.Next(); {
			noteValue(found, note(found, path, it.Node()), it.Node().Value())
		}
	case unstable.Array:
		for it := value.Children(); it.Next(); {
			noteValue(found, path, it.Node())
		}
	default: // nor keys in it
	}
}
