// Package packages builds the packages and does with them what administrators
// do: look at them, install, upgrade, remove and purge them, in a container.
package packages

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	older = "1.0.0"
	newer = "1.0.1~20260102030405.0abcdef" // as of a commit after a release
)

func TestPackages(t *testing.T) {
	harness.Require(t, "make", "dpkg-deb", "rpm", "lintian")
	old := build(t, older)
	again := build(t, older)
	update := build(t, newer)
	t.Run("reproducible", reproducible(old, again))
	t.Run("lintian", lintian(old))
	t.Run("contents", contents(old))
	t.Run("dpkg", dpkg(old, update))
	t.Run("rpm", rpm(old, update))
}

// service is the package of the daemon and what belongs to it. Every other
// program is a package of its own.
const service = "vpnproviderd"

// programs are those of each package.
func programs(t *testing.T) map[string][]string {
	t.Helper()
	mains, err := filepath.Glob(filepath.Join(harness.ModuleRoot(t), "cmd/*/main.go"))
	if err != nil || len(mains) == 0 {
		t.Fatalf("no programs: %v", err)
	}
	out := map[string][]string{service: {"/usr/bin/vpnctl", "/usr/sbin/vpnproviderd"}}
	for _, main := range mains {
		if name := filepath.Base(filepath.Dir(main)); strings.HasPrefix(name, "vpn-") {
			out[name] = []string{"/usr/bin/" + name}
		}
	}
	return out
}

// built are the packages of a version, by their names.
type built struct{ deb, rpm map[string]string }

func build(t *testing.T, version string) built {
	t.Helper()
	dir := t.TempDir()
	run(t, "make", "deb", "rpm", "VERSION="+version, "BIN="+dir+"/bin", "DIST="+dir)
	b := built{map[string]string{}, map[string]string{}}
	for name := range programs(t) {
		b.deb[name] = file(t, filepath.Join(dir, name+"_"+version+"-1_*.deb"))
		b.rpm[name] = file(t, filepath.Join(dir, name+"-"+version+"-1.*.rpm"))
	}
	return b
}

func file(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %q, %v", pattern, found, err)
	}
	return found[0]
}

// run runs a program of this machine in the module's folder.
func run(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = harness.ModuleRoot(t)
	for _, v := range os.Environ() {
		// A make that runs this test is no business of the one that it runs.
		if !strings.HasPrefix(v, "MAKE") && !strings.HasPrefix(v, "MFLAGS=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C.UTF-8")
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(argv, " "), err, out.String(), complaints.String())
	}
	return out.String()
}

// reproducible: what is built twice, in two places, is the same.
func reproducible(first, second built) func(*testing.T) {
	return func(t *testing.T) {
		for name := range first.deb {
			run(t, "cmp", first.deb[name], second.deb[name])
			run(t, "cmp", first.rpm[name], second.rpm[name])
		}
	}
}

func lintian(b built) func(*testing.T) {
	return func(t *testing.T) {
		argv := []string{"lintian", "--allow-root", "--fail-on=error,warning", "--tag-display-limit=0"}
		run(t, append(argv, slices.Sorted(maps.Values(b.deb))...)...)
	}
}

// contents: each package has its own programs and no others, and both kinds
// have the same files.
func contents(b built) func(*testing.T) {
	return func(t *testing.T) {
		for name, want := range programs(t) {
			inDeb := files(run(t, "sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar -t | sed -n 's:^\.\(.*[^/]\)$:\1:p'`, "sh", b.deb[name]))
			inRPM := files(run(t, "rpm", "-qlp", b.rpm[name]))
			if !slices.Equal(inDeb, inRPM) {
				t.Errorf("%s holds as deb\n%s\nas rpm\n%s", name, strings.Join(inDeb, "\n"), strings.Join(inRPM, "\n"))
			}
			got := slices.DeleteFunc(slices.Clone(inDeb), func(f string) bool { return !strings.Contains(f, "bin/") })
			if !slices.Equal(got, want) {
				t.Errorf("%s has the programs %q, want %q", name, got, want)
			}
		}
	}
}

// files are the paths in a list, in the form that both kinds have in common.
func files(list string) []string {
	var out []string
	for file := range strings.FieldsSeq(list) {
		file = strings.Replace(file, "/zsh/vendor-completions/", "/zsh/site-functions/", 1)
		if !strings.HasPrefix(file, "/usr/share/doc/") && !strings.HasPrefix(file, "/usr/share/lintian/") {
			out = append(out, file)
		}
	}
	slices.Sort(out)
	return out
}
