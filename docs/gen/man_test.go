package main

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The manual pages are without faults, as far as mandoc can tell.
func TestManualsAreSound(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("needs mandoc; test/install-deps installs it")
		}
		t.Skip("needs mandoc")
	}
	names, err := filepath.Glob(filepath.Join(root, "docs/man/*"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no manual pages: %v", err)
	}
	for _, name := range names {
		if out, err := exec.Command("mandoc", "-T", "lint", "-W", "warning", name).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// Each program has the options that its manual page has, and each command is
// in its program's own.
func TestManualsMatchHelp(t *testing.T) {
	for program, page := range map[string]string{"vpnproviderd": "vpnproviderd.8", "vpn-openconnect": "vpn-openconnect.1", "vpn-tray": "vpn-tray.1", "vpn-nm-bridge": "vpn-nm-bridge.8"} {
		help := build(t, program)
		text := read(t, "docs/man/"+page)
		compare(t, page, append(options(help("--help")), "help"), items(text))
	}

	for _, program := range []string{"vpnctl", "vpn-wireguard"} {
		t.Run(program, func(t *testing.T) { compareCommands(t, program) })
	}
}

// compareCommands is about a program with commands: each has its section.
func compareCommands(t *testing.T, program string) {
	t.Helper()
	help := build(t, program)
	top := help("--help")
	page := program + ".1"
	text := read(t, "docs/man/"+page)
	general, rest, _ := strings.Cut(text, "\n.Ss ")
	rest, _, _ = strings.Cut(rest, "\n.Sh ")
	sections := make(map[string]string)
	for section := range strings.SplitSeq(rest, "\n.Ss ") {
		name, _, _ := strings.Cut(section, "\n")
		name, _, _ = strings.Cut(name, " ")
		sections[name] = section
	}
	compare(t, page, options(top), items(general))
	_, commands, _ := strings.Cut(top, "Available Commands:\n")
	commands, _, _ = strings.Cut(commands, "\n\n")
	var names []string
	for line := range strings.Lines(commands) {
		if name := strings.Fields(line)[0]; name != "help" {
			names = append(names, name)
		}
	}
	compare(t, "the commands in "+page, names, slices.Collect(maps.Keys(sections)))
	for _, name := range names {
		own, _, _ := strings.Cut(help(name, "--help"), "Global Flags:")
		compare(t, page+", "+name, options(own), append(items(sections[name]), "help"))
	}
}

// The overview of the API has every method and nothing else.
func TestManualHasTheMethods(t *testing.T) {
	var want []string
	for _, name := range []string{"Manager", "Config", "Session"} {
		f, err := os.Open(filepath.Join(root, "dbus/wire/org.vpnprovider1."+name+".xml"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, err := parse(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range n.interfaces[0].members {
			if m.kind == "method" {
				want = append(want, m.name)
			}
		}
	}
	var got []string
	for _, found := range regexp.MustCompile(`(?m)^\.It Fn (\w+)`).FindAllStringSubmatch(read(t, "docs/man/org.vpnprovider1.7"), -1) {
		got = append(got, found[1])
	}
	if !slices.Equal(got, want) {
		t.Errorf("the page has the methods\n%v, the contract\n%v", got, want)
	}
}

// build makes a program and returns what runs it.
func build(t *testing.T, name string) func(args ...string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	run := func(argv ...string) string {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
		return string(out)
	}
	run("go", "build", "-o", program, "./cmd/"+name)
	return func(args ...string) string { return run(slices.Concat([]string{program}, args)...) }
}

// options are the long ones that a help text lists.
func options(help string) []string {
	return captured(`(?m)^ +(?:-\w, )?--([a-z-]+)`, help)
}

// items are the long options that a manual page describes.
func items(page string) []string {
	return captured(`(?m)^\.It Fl -([a-z-]+)`, page)
}

func captured(pattern, text string) (all []string) {
	for _, found := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, found[1])
	}
	return all
}

func compare(t *testing.T, what string, program, page []string) {
	t.Helper()
	for _, list := range []*[]string{&program, &page} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	if !slices.Equal(program, page) {
		t.Errorf("%s: the program has %v, the page %v", what, program, page)
	}
}
