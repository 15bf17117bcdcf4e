package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/vpnprovider/vpnproviderd"

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Deps       []string // everything it is linked with, tests aside
	Standard   bool
}

// rel is the package's path below the module, "" for a package not ours.
func (p listed) rel() string {
	rel, ok := strings.CutPrefix(p.ImportPath, module+"/")
	if !ok {
		return ""
	}
	return rel
}

// packages returns our packages, and which import paths are the standard
// library's.
func packages(t *testing.T) (ours []listed, standard map[string]bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Dir,GoFiles,Deps,Standard", "./...")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	standard = map[string]bool{"C": true}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return ours, standard
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		if p.Standard {
			standard[p.ImportPath] = true
		} else if p.rel() != "" {
			ours = append(ours, p)
		}
	}
}

// TestImportsRunOneWay holds the direction of the architecture: cmd, dbus,
// driver, then the leaves. It looks at whole dependency trees, so a detour is
// found as well.
func TestImportsRunOneWay(t *testing.T) {
	ours, standard := packages(t)
	rules := []struct {
		pkg     string   // the package, and with "/..." those below it
		allowed []string // apart from the standard library and the package itself
		why     string
	}{
		{"dbus/wire", nil, "the contract is a leaf"},
		{"tun/vnet", []string{"golang.org/x/sys/unix"}, "the arithmetic is for the daemon and its clients"},
		{"driver/params", []string{"go4.org/netipx"}, "parsing is a leaf"},
		{"routing", []string{"go4.org/netipx"}, "the plan is pure"},
		{"driver/valid", nil, "what a config may hold is a leaf"},
		{"driver", []string{"driver/params", "driver/valid", "routing", "go4.org/netipx"}, "the domain knows no bus, no netlink, no TUN"},
	}
	for _, rule := range rules {
		p := find(t, ours, rule.pkg)
		for _, dep := range p.Deps {
			if !standard[dep] && !slices.Contains(rule.allowed, strings.TrimPrefix(dep, module+"/")) {
				t.Errorf("%s must not depend on %s: %s", rule.pkg, dep, rule.why)
			}
		}
	}

	for _, rule := range []struct {
		pkg  string
		ours []string // of our packages, only these
	}{
		{"tun", []string{"tun/vnet"}},
		{"dbus/client", []string{"dbus/stream", "dbus/wire", "driver/params", "tun/vnet"}},
		{"dbus", []string{"dbus/stream", "dbus/wire", "driver", "driver/params", "driver/valid", "routing"}},
		{"cmd/vpnctl", []string{"cmd/internal/commands", "cmd/internal/ui", "dbus/client", "dbus/stream", "dbus/wire", "driver/params", "driver/platform", "driver/valid", "tun/vnet"}},
	} {
		p := find(t, ours, rule.pkg)
		for _, dep := range p.Deps {
			rel, mine := strings.CutPrefix(dep, module+"/")
			if mine && !slices.Contains(rule.ours, rel) {
				t.Errorf("%s must not depend on %s", rule.pkg, rel)
			}
		}
	}

	for _, p := range ours {
		if strings.HasPrefix(p.rel(), "routing/") {
			for _, dep := range p.Deps {
				rel, mine := strings.CutPrefix(dep, module+"/")
				if mine && rel != "routing" && !strings.HasPrefix(rel, "routing/") && rel != "dbus/stream" {
					t.Errorf("%s must not depend on %s", p.rel(), rel)
				}
			}
		}
		if !strings.HasPrefix(p.rel(), "test/") && !strings.HasSuffix(p.rel(), "test") && slices.Contains(p.Deps, "testing") {
			t.Errorf("%s is linked with package testing", p.rel())
		}
	}
}

func find(t *testing.T, ours []listed, rel string) listed {
	t.Helper()
	i := slices.IndexFunc(ours, func(p listed) bool { return p.rel() == rel })
	if i < 0 {
		t.Errorf("there is no package %s; if it was renamed, its rule follows", rel)
		return listed{}
	}
	return ours[i]
}

// TestPackageComments wants exactly one package comment in each package, so
// that there is one place to read what it is for.
func TestPackageComments(t *testing.T) {
	ours, _ := packages(t)
	for _, p := range ours {
		var with []string
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Error(err)
				continue
			}
			if file.Doc != nil && strings.TrimSpace(file.Doc.Text()) != "" {
				with = append(with, name)
			}
		}
		if len(p.GoFiles) > 0 && len(with) != 1 {
			t.Errorf("package %s has %d package comments %v, want 1", p.rel(), len(with), with)
		}
	}
}

// TestSource wants every Go file formatted, and none longer than 500 lines
// where it is not a test.
func TestSource(t *testing.T) {
	ours, _ := packages(t)
	for _, p := range ours {
		names, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			src, err := os.ReadFile(name)
			if err != nil {
				t.Error(err)
				continue
			}
			formatted, err := format.Source(src)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if !bytes.Equal(src, formatted) {
				t.Errorf("%s is not formatted; make fmt does it", name)
			}
			if n := bytes.Count(src, []byte("\n")); n > 500 && !strings.HasSuffix(name, "_test.go") {
				t.Errorf("%s has %d lines, 500 at most", name, n)
			}
		}
	}
}
