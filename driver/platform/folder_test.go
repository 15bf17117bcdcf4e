package platform

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func file(name, user string) string {
	return "app = 'a.b'\nname = '" + name + "'\nuser = " + user + "\n"
}

func write(t *testing.T, dir, name, text string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// A bad file harms no other, and is named with what to do.
func TestReadDir(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b.toml", file("B", "7"), 0o644)
	write(t, dir, "a.toml", file("A", "'root'"), 0o640)
	write(t, dir, "README", "x", 0o666)
	write(t, dir, ".hidden.toml", "x", 0o666)
	write(t, dir, "b.toml~", "x", 0o666)
	if err := os.Symlink("a.toml", filepath.Join(dir, "c-again.toml")); err != nil {
		t.Fatal(err)
	}
	elsewhere := write(t, t.TempDir(), "x", file("Linked", "7"), 0o644)
	if err := os.Symlink(elsewhere, filepath.Join(dir, "d.toml")); err != nil {
		t.Fatal(err)
	}
	bad := map[string]string{ // and what is said
		"c-again.toml": "a.toml has the same app, name and user",
		"dangling":     "cannot open it: no such file",
		"folder":       "it is no file",
		"group":        "others than its owner may write it (mode 0664): chmod go-w group.toml",
		"huge":         "it has more than 1048576 bytes",
		"pipe":         "it is no file",
		"syntax":       "syntax.toml:1: ",
		"world":        "(mode 0666): chmod go-w world.toml",
	}
	write(t, dir, "group.toml", file("G", "7"), 0o664)
	write(t, dir, "world.toml", file("W", "7"), 0o666)
	write(t, dir, "syntax.toml", "x", 0o644)
	write(t, dir, "huge.toml", strings.Repeat("#", 1<<20+1), 0o644)
	for path, make := range map[string]func(string) error{
		"dangling": func(path string) error { return os.Symlink("nowhere", path) },
		"folder":   func(path string) error { return os.Mkdir(path, 0o755) },
		"pipe":     func(path string) error { return syscall.Mkfifo(path, 0o644) },
	} {
		if err := make(filepath.Join(dir, path+".toml")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range got.Configs {
		names = append(names, c.Name)
	}
	if strings.Join(names, " ") != "A B Linked" {
		t.Errorf("configs %q", names)
	}
	if len(got.Bad) != len(bad) || len(got.Problems) != len(bad) {
		t.Errorf("bad %q, %q", got.Bad, got.Problems)
	}
	for _, p := range got.Problems {
		name := filepath.Base(p.File)
		want, ok := bad[name]
		if !ok {
			want, ok = bad[strings.TrimSuffix(name, ".toml")]
		}
		if !ok || !strings.Contains(p.String(), want) {
			t.Errorf("%s: want %q", p, want)
		}
	}
}

// Who is not the administrator cannot make configs.
func TestOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root, to give files away")
		}
		t.Skip("needs root, to give files away")
	}
	dir := t.TempDir()
	path := write(t, dir, "a.toml", file("A", "7"), 0o644)
	if err := os.Chown(path, 1234, 0); err != nil {
		t.Fatal(err)
	}
	got, err := ReadDir(dir)
	if err != nil || len(got.Configs) != 0 || len(got.Problems) != 1 || !strings.Contains(got.Problems[0].Text, "uid 1234, not to root: chown root a.toml") {
		t.Errorf("%+v, %v", got, err)
	}
	for _, c := range []struct {
		uid  int
		mode fs.FileMode
		want string
	}{{1234, 0o755, "belongs to uid 1234"}, {0, 0o775, "mode 0775"}, {0, 0o757, "mode 0757"}} {
		if err := os.Chown(dir, c.uid, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadDir(dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("a folder of uid %d with mode %o: %v", c.uid, c.mode, err)
		}
	}
	if got, err := ReadDir(filepath.Join(dir, "nothing")); err != nil || got.Configs != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ReadDir(path); err == nil {
		t.Error("a file is no folder")
	}
}

func TestUIDOf(t *testing.T) {
	for name, want := range map[string]string{"root": "0", "0": "0", "4000000000": "4000000000", "4294967295": "", "no such user": "", "-1": "", "99999999999": ""} {
		got, err := uidOf(name)
		if (err == nil) != (want != "") || err == nil && strconv.Itoa(int(got)) != want {
			t.Errorf("%q: %d, %v", name, got, err)
		}
	}
}
