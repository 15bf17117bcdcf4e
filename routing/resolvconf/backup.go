package resolvconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// record is what the backup holds.
type record struct {
	Path   string `json:"path"`
	Before entry  `json:"before"`

	// Written are the contents that we gave or were about to give the file:
	// one that has any of them is ours.
	Written []string `json:"written"`
}

// wrote says whether e is of our making. A file that had to be written in place
// when we were killed may still end as another version did.
func (r *record) wrote(e entry) bool {
	if !e.Exists || e.Target != "" {
		return false
	}
	if slices.ContainsFunc(r.Written, e.is) {
		return true
	}
	versions := append([]string{string(r.Before.Content)}, r.Written...)
	for _, begin := range versions {
		for _, end := range versions {
			if len(end) > len(begin) && e.is(begin+end[len(begin):]) && !e.is(string(r.Before.Content)) {
				return true
			}
		}
	}
	return false
}

// backup is where the record is kept.
type backup struct{ path string }

func backupIn(dir string) backup { return backup{filepath.Join(dir, "resolv.conf.backup")} }

// load gives the record of the file at path; nil where there is none.
func (b backup) load(path string) (*record, error) {
	data, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the backup of resolv.conf: %w", err)
	}
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("the backup of resolv.conf, %s, is damaged: %w: put resolv.conf right and remove it", b.path, err)
	}
	if r.Path != path {
		return nil, fmt.Errorf("the backup %s is of %s, not of %s: run with --resolv-conf %s once", b.path, r.Path, path, r.Path)
	}
	return r, nil
}

// save has the record on disk when it returns.
func (b backup) save(r *record) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err == nil {
		err = write(b.path, entry{Exists: true, Mode: 0o600, UID: os.Geteuid(), GID: os.Getegid(), Content: data})
	}
	if err != nil {
		return fmt.Errorf("cannot keep a backup of resolv.conf: %w", err)
	}
	return nil
}

// restore makes it what it was; nil: none.
func (b backup) restore(r *record) error {
	if r == nil {
		return b.drop()
	}
	return b.save(r)
}

// drop removes the record, once the file is as it was, and what a kill left of
// one that was being made.
func (b backup) drop() error {
	for _, path := range []string{temporary(b.path), b.path} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove the backup of resolv.conf: %w", err)
		}
	}
	if err := syncDir(filepath.Dir(b.path)); err != nil {
		return fmt.Errorf("cannot remove the backup of resolv.conf: %w", err)
	}
	return nil
}

// unfinished says whether a kill left a record that was being made.
func (b backup) unfinished() bool {
	_, err := os.Lstat(temporary(b.path))
	return err == nil
}
