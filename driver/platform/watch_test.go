package platform

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Whatever may change what ReadDir gives is told, and nothing else is.
func TestWatch(t *testing.T) {
	defer goleak.VerifyNone(t)
	root := t.TempDir()
	dir := filepath.Join(root, "configs.d")
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan struct{}, 100), make(chan error)
	go func() { ended <- Watch(ctx, dir, func() { told <- struct{}{} }) }()
	expect := func(what string) {
		t.Helper()
		select {
		case <-told:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: not told", what)
		}
	}
	expect("the beginning")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "a.toml")
	for _, change := range []struct {
		name string
		do   func() error
	}{
		{"the folder comes", func() error { return os.Mkdir(dir, 0o755) }},
		{"a file comes", func() error { return os.WriteFile(path, []byte("x"), 0o600) }},
		{"a file changes", func() error { return os.WriteFile(path, []byte("y"), 0o600) }},
		{"other rights", func() error { return os.Chmod(path, 0o644) }},
		{"a link comes", func() error { return os.Symlink("nowhere", filepath.Join(dir, "b.toml")) }},
		{"a file is renamed", func() error { return os.Rename(path, filepath.Join(dir, "c.toml")) }},
		{"a file goes", func() error { return os.Remove(filepath.Join(dir, "c.toml")) }},
		{"the folder is moved away", func() error { return os.Rename(dir, dir+".old") }},
		{"another folder comes", func() error { return os.Mkdir(dir, 0o755) }},
		{"a file comes into it", func() error { return os.WriteFile(path, []byte("x"), 0o600) }},
	} {
		must(change.do())
		expect(change.name)
	}
	// Reading is no change, and many changes are told together.
	if _, err := ReadDir(dir); err != nil {
		t.Fatal(err)
	}
	more := 1
	for try := 0; more > 0 && try < 5; try++ { // between two of them may be a pause, on a busy machine
		time.Sleep(2 * quiet)
		for len(told) > 0 {
			<-told
		}
		for range 100 {
			must(os.WriteFile(path, []byte("x"), 0o600))
		}
		expect("many changes")
		time.Sleep(2 * quiet)
		more = len(told)
	}
	if more > 0 {
		t.Errorf("told %d times more than once", more)
	}
	cancel()
	must(<-ended)
}

func TestWatchNothing(t *testing.T) {
	if err := Watch(t.Context(), "/nowhere/at/all", func() { t.Error("told") }); err == nil {
		t.Error("no error")
	}
}
