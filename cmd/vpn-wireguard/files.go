package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/google/renameio/v2"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/ui"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/wgconf"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

const extension = ".conf"

// folder is where imported files are. They hold keys: nobody else may read
// them.
type folder string

// ownFolder is the user's, which need not be there yet.
func ownFolder() (folder, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("cannot find the folder for imported files: %w", err)
	}
	return folder(filepath.Join(dir, "vpn-wireguard")), nil
}

func (f folder) path(name string) string { return filepath.Join(string(f), name+extension) }

func (f folder) has(name string) bool {
	_, err := os.Stat(f.path(name))
	return checkName(name) == nil && err == nil
}

func (f folder) names() ([]string, error) {
	entries, err := os.ReadDir(string(f))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot list imported files: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), extension); ok && checkName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// write saves a file, at once or not at all.
func (f folder) write(name string, content []byte) error {
	err := os.MkdirAll(string(f), 0o700)
	if err == nil {
		err = renameio.WriteFile(f.path(name), content, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot import %s: %w", name, err)
	}
	return nil
}

// checkName is for names that are files and are shown to people.
func checkName(name string) error {
	if name == "" || len(name) > 200 || name[0] == '.' || strings.ContainsFunc(name, func(r rune) bool {
		return r == '/' || unicode.IsControl(r) || r == unicode.ReplacementChar
	}) {
		return fmt.Errorf("%q cannot be a name", name)
	}
	return nil
}

// nameOf is the name of the configuration in a file.
func nameOf(file string) string { return strings.TrimSuffix(filepath.Base(file), extension) }

// isFile tells a path on the command line from a name.
func isFile(arg string) bool {
	return strings.ContainsRune(arg, '/') || strings.HasSuffix(arg, extension)
}

// readFile reads a file that may hold keys, and says who else can read it.
func readFile(file string) (content []byte, mode os.FileMode, err error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, &ui.Error{Code: ui.ExitNotFound, Err: err, Hint: hintList}
	}
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is not a file", file)
	}
	const most = 2 << 20 // what is too much is refused by who parses it
	content, err = io.ReadAll(io.LimitReader(f, most))
	return content, info.Mode(), err
}

// load reads the configuration of a tunnel that is to be connected. Keys that
// everybody on the machine can read are refused, as ssh does.
func load(file string) (wgconf.Config, error) {
	if file == "" {
		return wgconf.Config{}, errors.New("the config names no file: import one with vpn-wireguard import")
	}
	content, mode, err := readFile(file)
	if err != nil {
		return wgconf.Config{}, err
	}
	if mode&0o007 != 0 {
		return wgconf.Config{}, &ui.Error{
			Code: ui.ExitFailed,
			Err:  fmt.Errorf("%s holds keys, and is open to every user", file),
			Hint: "close it: chmod 600 " + file,
		}
	}
	return wgconf.Parse(file, content)
}

// Data of a config: the file, and nothing that is in it, as every program of
// the user can read the data.
const fileKey = "file"

func dataOf(file string) map[string]any { return map[string]any{fileKey: file} }

func fileOf(p client.ConfigProperties) string {
	file, _ := p.Data[fileKey].(string)
	return file
}
