package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the module's folder, seen from here.
const root = "../.."

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pages are all Markdown files, by their names below the module's folder.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			name, err = filepath.Rel(root, name)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = read(t, name)
		}
	}
	return all
}

func TestReferenceIsUpToDate(t *testing.T) {
	want, err := reference(filepath.Join(root, "dbus/wire"))
	if err != nil {
		t.Fatal(err)
	}
	if read(t, "docs/dbus.md") != want {
		t.Error("docs/dbus.md is out of date: go run ./docs/gen")
	}
}

// Each link leads to a file that is there, and to a heading that it has.
func TestLinks(t *testing.T) {
	all := pages(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for name, text := range all {
		for _, found := range link.FindAllStringSubmatch(withoutCode(text), -1) {
			target, anchor, _ := strings.Cut(found[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			file := name
			if target != "" {
				file = filepath.Join(filepath.Dir(name), target)
			}
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				t.Errorf("%s: %s leads nowhere", name, found[1])
			} else if anchor != "" && !slices.Contains(anchors(all[file]), anchor) {
				t.Errorf("%s: %s: the page has no such heading", name, found[1])
			}
		}
	}
}

func withoutCode(text string) string {
	return regexp.MustCompile("(?s)```.*?```").ReplaceAllString(text, "")
}

// anchors are the names that headings get where Markdown is shown.
func anchors(text string) (names []string) {
	for line := range strings.Lines(withoutCode(text)) {
		title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " ")
		if !ok || !strings.HasPrefix(line, "#") {
			continue
		}
		title = strings.ToLower(strings.TrimSpace(title))
		title = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(title, "")
		names = append(names, strings.ReplaceAll(title, " ", "-"))
	}
	return names
}

// A test that a page names as evidence is there.
func TestNamedTests(t *testing.T) {
	defined := make(map[string]bool)
	definition := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, found := range definition.FindAllSubmatch(text, -1) {
			defined[string(found[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range pages(t) {
		for _, found := range regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)`").FindAllStringSubmatch(text, -1) {
			if !defined[found[1]] {
				t.Errorf("%s names %s, which is no test", name, found[1])
			}
		}
	}
}

// The files that a page shows are those that are tested.
func TestShownExamples(t *testing.T) {
	page := read(t, "docs/providers.md")
	for _, name := range []string{"docs/examples/mirror/main.go", "docs/examples/echo.py", "docs/examples/stream.py"} {
		if !strings.Contains(page, "\n"+read(t, name)+"```\n") {
			t.Errorf("docs/providers.md does not show %s as it is", name)
		}
	}
}

// A complete app is short: that is what the library is for.
func TestShortExample(t *testing.T) {
	const name, limit = "docs/examples/mirror/main.go", 40
	code := regexp.MustCompile(`(?m)^\s*[^\s/]`).FindAllString(read(t, name), -1)
	if len(code) > limit {
		t.Errorf("%s has %d lines of code, more than %d", name, len(code), limit)
	}
}

// What answers NotSupported is listed as missing, and nothing else of the
// methods is.
func TestMissing(t *testing.T) {
	_, section, ok := strings.Cut(read(t, "docs/api.md"), "\n## What this version does not have\n")
	if !ok {
		t.Fatal("docs/api.md has no such section")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var told []string
	for line := range strings.Lines(section) {
		if first, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | "); ok {
			told = append(told, first)
		}
	}
	answers := read(t, "dbus/manager.go") + read(t, "dbus/config.go") + read(t, "dbus/session.go")
	for _, method := range regexp.MustCompile(`"(\w+)":\s+(\w+),`).FindAllStringSubmatch(answers, -1) {
		missing := method[2] == "notSupported"
		if listed := strings.Contains(strings.Join(told, "\n"), "`"+method[1]+"`"); listed != missing {
			t.Errorf("%s: missing is %v, listed as missing %v", method[1], missing, listed)
		}
	}
}

// Each module that our code imports is listed with its version.
func TestDependencies(t *testing.T) {
	versions := make(map[string]string)
	for _, found := range regexp.MustCompile(`(?m)^\t(\S+) (v\S+)`).FindAllStringSubmatch(read(t, "go.mod"), -1) {
		versions[found[1]] = found[2]
	}
	listed := make(map[string]bool)
	row := regexp.MustCompile(`(?m)^\| (\S+\.\S+/\S+) \| (v\S+) \|`)
	for _, found := range row.FindAllStringSubmatch(read(t, "docs/dependencies.md"), -1) {
		listed[found[1]] = true
		if versions[found[1]] != found[2] {
			t.Errorf("%s has version %q, the page says %s", found[1], versions[found[1]], found[2])
		}
	}
	for _, path := range imports(t) {
		module := path
		for module != "." && versions[module] == "" {
			module = filepath.Dir(module)
		}
		if module != "." && !listed[module] {
			listed[module] = true
			t.Errorf("%s is imported and not listed", module)
		}
	}
}

// imports are the import paths in our code and its tests.
func imports(t *testing.T) []string {
	t.Helper()
	list := exec.Command("go", "list", "-json=Imports,TestImports,XTestImports", "./...")
	list.Dir, list.Stderr = root, os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]bool)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ Imports, TestImports, XTestImports []string }
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return slices.Sorted(maps.Keys(all))
		} else if err != nil {
			t.Fatal(err)
		}
		for _, path := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			all[path] = true
		}
	}
}
