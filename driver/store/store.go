// Package store keeps configs in files: one JSON file each, in a folder for
// each user, written so that a crash leaves the old or the new file. A file
// that cannot be read is set aside for a person to look at, never deleted,
// and harms no other. The apps that each user agreed to are kept likewise.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/vpnprovider/vpnproviderd/driver"
)

const (
	ending  = ".json"
	damaged = ".damaged"
	maxFile = 4 << 20 // more than the largest config can take
)

// Store is a driver.Store in a folder. It has no state of its own.
type Store struct {
	root string
	log  *slog.Logger
}

// Open makes the folder where it is missing.
func Open(root string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the folder for configs: %w", err)
	}
	// Folders in it may be from a process that was killed when it had made them.
	if err := syncFolder(root); err != nil {
		return nil, fmt.Errorf("cannot make the folder for configs: %w", err)
	}
	return &Store{root: root, log: log}, nil
}

// file is what a file holds.
type file struct {
	App           string           `json:"app"`
	Name          string           `json:"name"`
	Owner         uint32           `json:"owner"`
	Source        string           `json:"source"`
	File          string           `json:"file,omitempty"`
	AutoConnect   bool             `json:"autoConnect,omitempty"`
	Lockdown      bool             `json:"lockdown,omitempty"`
	LastConnected uint64           `json:"lastConnected,omitempty"`
	Delivered     bool             `json:"delivered,omitempty"`
	Removed       bool             `json:"removed,omitempty"`
	Data          map[string]value `json:"data,omitempty"`
}

// Save writes the record; it is on the disk when Save returns.
func (s *Store) Save(r driver.Record) error {
	f := file{
		App: r.App, Name: r.Name, Owner: r.Owner, Source: r.Source, File: r.File, AutoConnect: r.AutoConnect,
		LastConnected: r.LastConnected, Delivered: r.Delivered, Removed: r.Removed, Lockdown: r.Lockdown,
	}
	if len(r.Data) > 0 {
		f.Data = make(map[string]value, len(r.Data))
		for key, v := range r.Data {
			f.Data[key] = value{v}
		}
	}
	text, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return fmt.Errorf("cannot encode the config: %w", err)
	}
	folder := s.folder(r.Owner)
	if err := s.makeFolder(folder); err != nil {
		return err
	}
	err = renameio.WriteFile(s.path(r.Owner, r.ID()), append(text, '\n'), 0o600,
		renameio.WithTempDir(folder), renameio.IgnoreUmask())
	if err != nil {
		return err
	}
	return syncFolder(folder)
}

// makeFolder makes a user's, where it is missing, so that it stays.
func (s *Store) makeFolder(folder string) error {
	err := os.Mkdir(folder, 0o700)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	if err := syncFolder(s.root); err != nil {
		return errors.Join(err, os.Remove(folder)) // or it would be taken for one that stays
	}
	return nil
}

// Delete removes the record; that there is none is no error.
func (s *Store) Delete(owner uint32, id driver.ConfigID) error {
	if err := os.Remove(s.path(owner, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncFolder(s.folder(owner)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Load reads all records, sets damaged files aside and sweeps what an
// interrupted Save left.
func (s *Store) Load() ([]driver.Record, error) {
	users, err := os.ReadDir(s.root)
	if err != nil {
		return nil, err
	}
	var records []driver.Record
	for _, user := range users {
		folder := filepath.Join(s.root, user.Name())
		if _, err := strconv.ParseUint(user.Name(), 10, 32); err != nil || !user.IsDir() {
			s.log.Warn("this does not belong among the configs", "path", folder)
			continue
		}
		files, err := os.ReadDir(folder)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if r, ok := s.load(folder, f.Name()); ok {
				records = append(records, r)
			}
		}
	}
	return records, nil
}

func (s *Store) load(folder, name string) (r driver.Record, ok bool) {
	path := filepath.Join(folder, name)
	switch {
	case strings.HasPrefix(name, "."): // renameio's temporary file
		if err := os.Remove(path); err != nil {
			s.log.Warn("cannot remove a leftover", "path", path, "error", err)
		}
		return r, false
	case !strings.HasSuffix(name, ending):
		return r, false
	}
	r, err := read(path)
	if err == nil && filepath.Join(folder, name) != s.path(r.Owner, r.ID()) {
		err = fmt.Errorf("it holds config %q of app %q of uid %d, which has another file name", r.Name, r.App, r.Owner)
	}
	if err == nil {
		return r, true
	}
	s.log.Error("a config is damaged and was set aside", "path", path, "as", aside(path, s.log), "error", err)
	return r, false
}

// aside renames a damaged file, without overwriting an earlier one.
func aside(path string, log *slog.Logger) string {
	for i := range 1000 {
		to := path + damaged
		if i > 0 {
			to += "." + strconv.Itoa(i)
		}
		if os.Link(path, to) == nil {
			if err := os.Remove(path); err != nil {
				log.Error("cannot set a damaged file aside", "path", path, "error", err)
			}
			return to
		}
	}
	return path
}

// readFile reads one that is no link and not too long.
func readFile(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("it is a %s of %d bytes", info.Mode().Type(), info.Size())
	}
	return os.ReadFile(path)
}

func read(path string) (r driver.Record, err error) {
	text, err := readFile(path)
	if err != nil {
		return r, err
	}
	var f file
	if err := json.Unmarshal(text, &f); err != nil {
		return r, err
	}
	r = driver.Record{
		App: f.App, Name: f.Name, Owner: f.Owner, Source: f.Source, File: f.File, AutoConnect: f.AutoConnect,
		LastConnected: f.LastConnected, Delivered: f.Delivered, Removed: f.Removed, Lockdown: f.Lockdown, Data: driver.Data{},
	}
	for key, v := range f.Data {
		r.Data[key] = v.any
	}
	return r, r.Check()
}

func (s *Store) folder(owner uint32) string {
	return filepath.Join(s.root, strconv.FormatUint(uint64(owner), 10))
}

func (s *Store) path(owner uint32, id driver.ConfigID) string {
	return filepath.Join(s.folder(owner), string(id)+ending)
}

// syncFolder makes a rename or removal in it durable.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
