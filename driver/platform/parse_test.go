package platform

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/driver/valid"
)

func lookup(name string) (uint32, error) {
	if name == "alice" {
		return 1000, nil
	}
	return 0, errors.New("there is no such user")
}

const good = `# the office
app = "com.example.Demo"
name = "Größe"
user = "alice"
autoConnect = true
lockdown = true

[data]
server = "vpn.example.com"
port = 443
ratio = 0.5
never = -inf
on = true
list = ["a", 1, [2.5, false]]
empty = []
inline = { a.b = "c" }
"quoted key" = 'x'

[data.table]
deep.er = 1

[[data.hosts]]
name = "one"

[[data.hosts]]
name = "two"
`

func TestParse(t *testing.T) {
	want := Config{
		File: "work.toml", App: "com.example.Demo", Name: "Größe", UID: 1000, AutoConnect: true, Lockdown: true,
		Data: map[string]any{
			"server": "vpn.example.com", "port": int64(443), "ratio": 0.5, "never": math.Inf(-1), "on": true,
			"list": []any{"a", int64(1), []any{2.5, false}}, "empty": []any{},
			"inline": map[string]any{"a": map[string]any{"b": "c"}}, "quoted key": "x",
			"table": map[string]any{"deep": map[string]any{"er": int64(1)}},
			"hosts": []any{map[string]any{"name": "one"}, map[string]any{"name": "two"}},
		},
	}
	got, problems := Parse("work.toml", []byte(good), lookup)
	if diff := cmp.Diff(want, got); diff != "" || problems != nil {
		t.Errorf("%v\n%s", problems, diff)
	}
	if err := valid.Data(got.Data); err != nil {
		t.Error(err)
	}
	least, problems := Parse("x", []byte("app='a.b'\nname='n'\nuser=0\n"), lookup)
	if diff := cmp.Diff(Config{File: "x", App: "a.b", Name: "n"}, least); diff != "" || problems != nil {
		t.Errorf("%v\n%s", problems, diff)
	}
}

// Each problem has the line and the key at which it is.
func TestProblems(t *testing.T) {
	head := "app = 'a.b'\nname = 'n'\nuser = 7\n" // 3 lines
	for _, tt := range []struct{ text, want string }{
		{"", "f:1: app: is missing\nf:1: name: is missing\nf:1: user: is missing"},
		{"app = 'demo'\nname = ''\nuser = 'bob'", `f:1: app: app id "demo" is not reverse-DNS: it needs two or more elements
f:2: name: the name is empty
f:3: user: there is no such user`},
		{"app = 1\nname = true\nuser = 1.5", "f:1: app: is a whole number, not a text in quotes\n" +
			"f:2: name: is true or false, not a text in quotes\nf:3: user: is a number with a fraction, not a user's name or uid"},
		{"app='a.b'\nname='n'\nuser=-1", "f:3: user: -1 is no uid"},
		{"app='a.b'\nname='n'\nuser=4294967295", "f:3: user: 4294967295 is no uid"},
		{"app='a.b'\nname='n\\t'\nuser=1", ""}, // a literal text: \t is two letters
		{"app='a.b'\nname=\"n\\t\"\nuser=1", `f:2: name: the name "n\t" has control characters`},
		{head + "autoconnect = true\nlockdown = 1\n", "f:4: autoconnect: there is no such key\nf:5: lockdown: is a whole number, not true or false"},
		{head + "data = 'x'", "f:4: data: is a text, not a table"},
		{head + "[data]\n\nx = 1\nwhen = 2026-01-01\n", "f:7: data.when: is a date or time, which apps cannot be given: put it in quotes"},
		{head + "[data]\nx = [1,\n { y = 12:00:00 }]\n", "f:6: data.x.y: is a date or time, which apps cannot be given: put it in quotes"},
		{head + "[data.x]\ny = \"\\u0007\"\n", `f:4: data.x: the value of data["x"]["y"] "\a" has control characters`},
		{head + "[data]\ns = '" + strings.Repeat("x", 256) + "'", `f:5: data.s: the value of data["s"] has 256 bytes, 255 are allowed`},
		{head + "[data]\nx = " + strings.Repeat("[", 9) + strings.Repeat("]", 9), "f:5: data.x: data"},
		{head + "[data]\nx = [" + strings.Repeat("1,", 10000) + "]", "f:5: data.x: data is too large: more than 65536 bytes"},
		{head + "[data]\nx = [" + strings.Repeat("1,", 1000) + "]\ny = [" + strings.Repeat("1,", 1000) + "]", "f:4: data: data is too large: more than 65536 bytes"},
		{head + "[network]\n", "f:4: network: there is no such key"},
		{head + "app = 'c.d'\n", "f:4: "},
		{head + "x = \n", "f:4: "},
		{head + "x = 99999999999999999999\n", "f:4: x: "},
		{head + "name = \"\xff\"\n", "f:4: "},
		{"nonsense", "f:1: "},
	} {
		_, problems := Parse("f", []byte(tt.text), lookup)
		var lines []string
		for _, p := range problems {
			lines = append(lines, p.String())
		}
		if got := strings.Join(lines, "\n"); got != tt.want && (tt.want == "" || strings.Count(tt.want, "\n") > 0 || !strings.HasPrefix(got, tt.want)) {
			t.Errorf("%.100q:\n%s\nwant\n%s", tt.text, got, tt.want)
		}
	}
}

// What is taken is valid, whatever the file; what is refused has a line of the
// file.
func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("app='a.b'\nname='n'\nuser=0\ndata.a.b=1\ndata.c=[{d=[[]]}]"))
	f.Add([]byte("data=[[[[[[["))
	f.Add([]byte("[[data.x]]\n[data.x.y]\n\"a.b\".c=1\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, problems := Parse("f", text, lookup)
		for _, p := range problems {
			if p.Line < 1 || p.Line > 1+strings.Count(string(text), "\n") || p.Text == "" || p.File != "f" {
				t.Errorf("%+v", p)
			}
		}
		if len(problems) > 0 {
			return
		}
		if err := errors.Join(valid.App(c.App), valid.Name(c.Name), valid.Data(c.Data)); err != nil {
			t.Errorf("%+v was taken: %v", c, err)
		}
	})
}
