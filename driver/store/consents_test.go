package store_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/driver/store"
)

func openConsents(t *testing.T, root string) (*store.Consents, *strings.Builder) {
	t.Helper()
	var log strings.Builder
	c, err := store.OpenConsents(root, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return c, &log
}

func TestConsents(t *testing.T) {
	root := filepath.Join(t.TempDir(), "state", "consents")
	c, _ := openConsents(t, root)
	want := map[uint32][]string{1000: {"a.b", "com.example.Demo"}, 4294967295: {"a.b"}}
	for uid, apps := range want {
		if err := c.SaveConsents(uid, apps); err != nil {
			t.Fatal(err)
		}
	}
	c, log := openConsents(t, root)
	got, err := c.LoadConsents()
	if diff := cmp.Diff(want, got); diff != "" || err != nil || log.Len() > 0 {
		t.Errorf("%v %s\n%s", err, log, diff)
	}
	for path, mode := range map[string]os.FileMode{root: 0o700, filepath.Join(root, "1000.json"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	for range 2 {
		if err := c.SaveConsents(1000, nil); err != nil {
			t.Error(err)
		}
	}
	delete(want, 1000)
	if got, err := c.LoadConsents(); err != nil || !cmp.Equal(want, got) {
		t.Errorf("without those of 1000: %v, %v", got, err)
	}
}

// A damaged file is no consent. It is kept, named in the log, and harms no
// other.
func TestDamagedConsents(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "cut": `{"apps": ["com.exa`, "type": `{"apps": "com.example.Demo"}`, "no app": `{"apps": ["com.example.Demo", "x"]}`,
		"huge": strings.Repeat(" ", 5<<20),
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			c, log := openConsents(t, root)
			if err := c.SaveConsents(1001, []string{"a.b"}); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{"1000.json", ".1000.json123", "root.json"} {
				if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := c.LoadConsents()
			if want := map[uint32][]string{1001: {"a.b"}}; err != nil || !cmp.Equal(want, got) {
				t.Errorf("%v, %v", got, err)
			}
			left, _ := filepath.Glob(filepath.Join(root, "*"))
			var names []string
			for _, path := range left {
				names = append(names, filepath.Base(path))
			}
			if want := []string{"1000.json.damaged", "1001.json", "root.json.damaged"}; !cmp.Equal(want, names) {
				t.Errorf("left are %q", names)
			}
			if !strings.Contains(log.String(), "1000.json.damaged") {
				t.Errorf("the log: %s", log)
			}
		})
	}
}
