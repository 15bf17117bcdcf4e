package store_test

import (
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/store"
)

func open(t *testing.T, root string) (*store.Store, *strings.Builder) {
	t.Helper()
	var log strings.Builder
	s, err := store.Open(root, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s, &log
}

func record(name string) driver.Record {
	return driver.Record{
		App: "com.example.Demo", Name: name, Owner: 1000, Source: "provider", Delivered: true,
		LastConnected: math.MaxUint64, Data: driver.Data{
			"s": "text \"quoted\" ü", "b": true, "y": byte(7), "n": int16(-2), "q": uint16(2), "i": int32(-3),
			"u": uint32(math.MaxUint32), "x": int64(math.MinInt64), "t": uint64(math.MaxUint64),
			"d": 0.1, "inf": math.Inf(-1), "ad": []float64{1, math.Inf(1)}, "as": []string{"a", ""},
			"ay": []byte{0, 255}, "empty": []string{}, "av": []any{"x", uint32(1), []any{}},
			"a{sv}": map[string]any{"deep": map[string]any{"er": int64(1)}},
		},
	}
}

func TestRoundTrip(t *testing.T) {
	root := filepath.Join(t.TempDir(), "configs")
	s, _ := open(t, root)
	want := []driver.Record{record("Home"), record("Work")}
	want[1].AutoConnect, want[1].Lockdown, want[1].Removed, want[1].File = true, true, true, "/etc/x.toml"
	for _, r := range want {
		if err := s.Save(r); err != nil {
			t.Fatal(err)
		}
	}
	s, log := open(t, root)
	got, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]driver.Record{}
	for _, r := range got {
		byName[r.Name] = r
	}
	for _, w := range want {
		if diff := cmp.Diff(w, byName[w.Name]); diff != "" {
			t.Errorf("%s came back different (-saved +loaded):\n%s", w.Name, diff)
		}
	}
	if log.Len() > 0 {
		t.Errorf("log: %s", log)
	}
	filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		info, err := d.Info()
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v (%v), others can read it", path, info.Mode(), err)
		}
		return nil
	})
	for _, r := range want {
		if err := s.Delete(r.Owner, r.ID()); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(r.Owner, r.ID()); err != nil {
			t.Errorf("second Delete: %v", err)
		}
	}
	if got, err := s.Load(); err != nil || len(got) != 0 {
		t.Errorf("after Delete: %v, %v", got, err)
	}
}

// A damaged file is set aside, named in the log, kept, and harms no other.
func TestDamaged(t *testing.T) {
	good := record("Good")
	for name, text := range map[string]string{
		"empty":      "",
		"cut":        `{"app": "com.exa`,
		"type":       `{"app": 1}`,
		"bad app":    `{"app":"x","name":"n","owner":1000,"source":"provider"}`,
		"bad source": `{"app":"a.b","name":"n","owner":1000,"source":"me"}`,
		"other name": `{"app":"a.b","name":"n","owner":1000,"source":"provider"}`,
		"bad data":   `{"app":"a.b","name":"n","owner":1000,"source":"provider","data":{"x":{"zz":1}}}`,
		"huge":       strings.Repeat(" ", 5<<20),
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "configs")
			s, _ := open(t, root)
			if err := s.Save(good); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(root, "1000", strings.Repeat("0", 32)+".json")
			for round := range 2 {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				s, log := open(t, root)
				got, err := s.Load()
				if err != nil || len(got) != 1 || got[0].Name != "Good" {
					t.Fatalf("Load: %v, %v", got, err)
				}
				if !strings.Contains(log.String(), path) {
					t.Errorf("the log does not name the file: %s", log)
				}
				kept, _ := filepath.Glob(path + ".damaged*")
				if len(kept) != round+1 {
					t.Errorf("round %d: kept %v", round, kept)
				}
				if text, err := os.ReadFile(path); err == nil {
					t.Errorf("it is still there: %q", text)
				}
			}
		})
	}
}

// A symbolic link in the place of a config is not followed.
func TestLink(t *testing.T) {
	root := filepath.Join(t.TempDir(), "configs")
	s, _ := open(t, root)
	r := record("Work")
	if err := s.Save(r); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "1000", string(r.ID())+".json")
	elsewhere := filepath.Join(t.TempDir(), "elsewhere.json")
	if err := os.Rename(path, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, path); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(); err != nil || len(got) != 0 {
		t.Errorf("Load followed a link: %v, %v", got, err)
	}
	if _, err := os.Stat(elsewhere); err != nil {
		t.Error(err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"app":"a.b","name":"n","owner":1000,"source":"provider","data":{"x":{"av":[{"s":"y"},{"d":"NaN"}]}}}`))
	f.Add([]byte(`{"data":{"x":{"a{sv}":{"y":{"ay":"AAE="}}}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "1000"), 0o700); err != nil {
			t.Fatal(err)
		}
		id := string(driver.NewConfigID(1000, "a.b", "n"))
		if err := os.WriteFile(filepath.Join(root, "1000", id+".json"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, _ := open(t, root)
		records, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if err := s.Save(r); err != nil {
				t.Errorf("what was read cannot be saved: %v", err)
			}
		}
	})
}
