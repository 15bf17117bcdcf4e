package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/vpnprovider/vpnproviderd/driver/valid"
)

// Consents is a driver.Consents in a folder, with a file for each user. A file
// that cannot be read is set aside, and its user asked again. It has no state
// of its own; the manager calls it with its lock held.
type Consents struct {
	root string
	log  *slog.Logger
}

// consents is what a file of Consents holds.
type consents struct {
	Apps []string `json:"apps"`
}

// OpenConsents makes the folder where it is missing.
func OpenConsents(root string, log *slog.Logger) (*Consents, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the folder for consents: %w", err)
	}
	return &Consents{root: root, log: log}, nil
}

// SaveConsents replaces what is kept of a user; it is on the disk when
// SaveConsents returns.
func (c *Consents) SaveConsents(uid uint32, apps []string) error {
	path := c.path(uid)
	if len(apps) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return syncFolder(c.root)
	}
	text, err := json.MarshalIndent(consents{apps}, "", "\t")
	if err != nil {
		return fmt.Errorf("cannot encode the consents: %w", err)
	}
	err = renameio.WriteFile(path, append(text, '\n'), 0o600, renameio.WithTempDir(c.root), renameio.IgnoreUmask())
	if err != nil {
		return err
	}
	return syncFolder(c.root)
}

// LoadConsents reads the apps that each user agreed to, sets damaged files aside and
// sweeps what an interrupted SaveConsents left.
func (c *Consents) LoadConsents() (map[uint32][]string, error) {
	files, err := os.ReadDir(c.root)
	if err != nil {
		return nil, err
	}
	all := make(map[uint32][]string)
	for _, f := range files {
		path := filepath.Join(c.root, f.Name())
		switch {
		case strings.HasPrefix(f.Name(), "."): // renameio's temporary file
			if err := os.Remove(path); err != nil {
				c.log.Warn("cannot remove a leftover", "path", path, "error", err)
			}
			continue
		case !strings.HasSuffix(f.Name(), ending):
			continue
		}
		uid, apps, err := readConsents(path)
		if err == nil && path != c.path(uid) {
			err = fmt.Errorf("the file of uid %d has another name", uid)
		}
		if err != nil {
			c.log.Error("a file of consents is damaged and was set aside", "path", path, "as", aside(path, c.log), "error", err)
			continue
		}
		all[uid] = apps
	}
	return all, nil
}

func readConsents(path string) (uid uint32, apps []string, err error) {
	n, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(path), ending), 10, 32)
	if err != nil {
		return 0, nil, err
	}
	text, err := readFile(path)
	if err != nil {
		return 0, nil, err
	}
	var file consents
	if err := json.Unmarshal(text, &file); err != nil {
		return 0, nil, err
	}
	for _, app := range file.Apps {
		if err := valid.App(app); err != nil {
			return 0, nil, err
		}
	}
	slices.Sort(file.Apps)
	return uint32(n), slices.Compact(file.Apps), nil
}

func (c *Consents) path(uid uint32) string {
	return filepath.Join(c.root, strconv.FormatUint(uint64(uid), 10)+ending)
}
