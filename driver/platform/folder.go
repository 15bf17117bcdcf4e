// Package platform reads the configs that the administrator of a host keeps in
// files: one TOML file each,
//
//	app = "com.example.Demo"
//	name = "Work"
//	user = "alice"      # or a uid
//	autoConnect = true  # these three may be left out
//	lockdown = false
//	[data]
//	server = "vpn.example.com"
//
// What is in data is the app's own: TOML texts, whole numbers, floats, truths,
// arrays and tables become the D-Bus types s, x, d, b, av and a{sv}.
package platform

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	ending  = ".toml"
	maxFile = 1 << 20 // far more than the largest data can take

	// writers are who must not be able to write: all but the owner.
	writers fs.FileMode = 0o022
)

// Folder is what a folder holds, in the order of the files' names.
type Folder struct {
	// Configs of the good files; the same app, name and user once.
	Configs []Config

	// Bad are the paths of the other files.
	Bad []string

	// Problems of those.
	Problems []Problem
}

// ReadDir reads the files of a folder that end in .toml and do not begin with a
// dot. A folder that is not there is empty. One that others than root, or than
// the user of this process, own or may write is an error; a file that others
// than root, or than the owner of the folder, own or may write is a bad one.
func ReadDir(dir string) (f Folder, err error) {
	entries, err := os.ReadDir(dir) // by name
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("cannot read the folder of the administrator's configs: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return f, fmt.Errorf("cannot look at the folder of the administrator's configs: %w", err)
	}
	if why := distrust(info, 0, os.Geteuid()); why != "" {
		return f, fmt.Errorf("the folder %s is not the administrator's alone: %s", dir, why)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if filepath.Ext(path) != ending || strings.HasPrefix(e.Name(), ".") || gone(path) {
			continue
		}
		c, problems := read(path, func(file fs.FileInfo) error { return trusted(file, 0, ownerOf(info)) })
		if len(problems) > 0 {
			f.Bad, f.Problems = append(f.Bad, path), append(f.Problems, problems...)
			continue
		}
		f.Configs = append(f.Configs, c)
	}
	twice := Duplicates(f.Configs)
	f.Problems = append(f.Problems, twice...)
	for _, p := range twice {
		f.Bad = append(f.Bad, p.File)
	}
	f.Configs = slices.DeleteFunc(f.Configs, func(c Config) bool { return slices.Contains(f.Bad, c.File) })
	return f, nil
}

// Read reads a file, whoever owns it.
func Read(path string) (Config, []Problem) {
	return read(path, func(fs.FileInfo) error { return nil })
}

// Duplicates complains of those that have the same app, name and user as one
// before.
func Duplicates(configs []Config) (problems []Problem) {
	type identity struct {
		uid       uint32
		app, name string
	}
	first := make(map[identity]string)
	for _, c := range configs {
		id := identity{c.UID, c.App, c.Name}
		if file, taken := first[id]; taken {
			problems = append(problems, Problem{
				File: c.File, Line: 1, Key: "name",
				Text: fmt.Sprintf("%s has the same app, name and user: %q, %q, uid %d", file, c.App, c.Name, c.UID),
			})
			continue
		}
		first[id] = c.File
	}
	return problems
}

func read(path string, check func(fs.FileInfo) error) (Config, []Problem) {
	text, err := content(path, check)
	if err != nil {
		return Config{File: path}, []Problem{{File: path, Line: 1, Text: err.Error()}}
	}
	return Parse(path, text, uidOf)
}

// content opens what may be no file: a pipe must not make it wait.
func content(path string, check func(fs.FileInfo) error) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrPermission) {
		return nil, errors.New("it cannot be read: let the group vpnprovider read it")
	}
	if err != nil {
		return nil, plain("cannot open", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, plain("cannot look at", err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no file")
	}
	if err := check(info); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, plain("cannot read", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return text, nil
}

// plain leaves the path out, which is told anyway.
func plain(what string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return fmt.Errorf("%s it: %w", what, err)
}

// trusted is distrust as an error.
func trusted(info fs.FileInfo, owners ...int) error {
	if why := distrust(info, owners...); why != "" {
		return errors.New(why)
	}
	return nil
}

// distrust says why others than the owners could have written it.
func distrust(info fs.FileInfo, owners ...int) string {
	if owner := ownerOf(info); !slices.Contains(owners, owner) {
		return fmt.Sprintf("it belongs to uid %d, not to root: chown root %s", owner, info.Name())
	}
	if info.Mode()&writers != 0 {
		return fmt.Sprintf("others than its owner may write it (mode %04o): chmod go-w %s", info.Mode().Perm(), info.Name())
	}
	return ""
}

// ownerOf is -1 where there is none, which there always is here.
func ownerOf(info fs.FileInfo) int {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return -1
}

// gone says that a file was removed after the folder was listed. A link that
// leads nowhere is there.
func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// uidOf knows the users of the host, and numbers.
func uidOf(name string) (uint32, error) {
	if u, err := user.Lookup(name); err == nil {
		name = u.Uid
	} else if _, err := strconv.ParseUint(name, 10, 32); err != nil {
		return 0, fmt.Errorf("there is no user %q here: for one who is not in /etc/passwd, write the uid", name)
	}
	uid, err := strconv.ParseUint(name, 10, 32)
	if err != nil || uid == 1<<32-1 {
		return 0, fmt.Errorf("%q is no uid", name)
	}
	return uint32(uid), nil
}
