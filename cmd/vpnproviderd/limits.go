package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// limits are what the administrator can set; 0 is the default.
type limits struct {
	// ConfigsPerUser and Configs are how many configs there may be, of one
	// user and on the host.
	ConfigsPerUser int `toml:"configs-per-user"`
	Configs        int `toml:"configs"`
}

// maxConfigs is what a limit of configs can be set to.
const maxConfigs = 100_000

// readLimits reads vpnproviderd.toml in the folder; that there is none is no
// error. Errors name file, line and key.
func readLimits(folder string) (limits, error) {
	path := filepath.Join(folder, "vpnproviderd.toml")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return limits{}, nil
	}
	if err != nil {
		return limits{}, fmt.Errorf("cannot read the configuration: %w", err)
	}
	defer f.Close()
	var file struct {
		Limits limits `toml:"limits"`
	}
	if err := toml.NewDecoder(f).DisallowUnknownFields().Decode(&file); err != nil {
		return limits{}, where(path, err)
	}
	for _, l := range []struct {
		key   string
		value int
	}{{"configs-per-user", file.Limits.ConfigsPerUser}, {"configs", file.Limits.Configs}} {
		if l.value < 0 || l.value > maxConfigs {
			return limits{}, fmt.Errorf("%s: limits.%s is %d, not within 1..%d (0: the default)", path, l.key, l.value, maxConfigs)
		}
	}
	return file.Limits, nil
}

// where says which line and key of a file are wrong.
func where(path string, err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
		row, _ := strict.Errors[0].Position()
		return fmt.Errorf("%s:%d: there is no key %s", path, row, strings.Join(strict.Errors[0].Key(), "."))
	}
	if d, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ := d.Position()
		return fmt.Errorf("%s:%d: %s: %w", path, row, strings.Join(d.Key(), "."), err)
	}
	return fmt.Errorf("%s: %w", path, err)
}
