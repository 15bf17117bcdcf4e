package resolvconf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// errReadOnly is that of a file system without the right to write.
var errReadOnly = unix.EROFS

// maxSize is more than any resolv.conf has.
const maxSize = 1 << 20

// entry is what a folder has under one name: nothing, a symbolic link, or a
// file.
type entry struct {
	Exists bool        `json:"exists"`
	Target string      `json:"target,omitempty"` // of a symbolic link
	Mode   fs.FileMode `json:"mode,omitempty"`   // permissions of a file
	UID    int         `json:"uid"`
	GID    int         `json:"gid"`

	// Content of a file; of a symbolic link what it leads to, for its options.
	Content []byte `json:"content,omitempty"`
}

// read looks at path without following it.
func read(path string) (entry, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return entry{}, nil
	}
	if err != nil {
		return entry{}, err
	}
	e := entry{Exists: true}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if e.Target, err = os.Readlink(path); err != nil {
			return entry{}, err
		}
		// One that leads nowhere, or where we may not look, has no options.
		e.Content, _ = content(path)
		return e, nil
	case !info.Mode().IsRegular():
		return entry{}, fmt.Errorf("%s is neither a file nor a symbolic link", path)
	}
	e.Mode = info.Mode().Perm()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		e.UID, e.GID = int(st.Uid), int(st.Gid)
	}
	e.Content, err = content(path)
	return e, err
}

func content(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(b) > maxSize {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxSize)
	}
	return b, err
}

// is says whether e is a file with that content.
func (e entry) is(content string) bool {
	return e.Exists && e.Target == "" && string(e.Content) == content
}

func (e entry) equal(o entry) bool {
	if e.Target != "" || o.Target != "" {
		return e.Target == o.Target
	}
	return e.Exists == o.Exists && bytes.Equal(e.Content, o.Content)
}

// plain is a file with that content, and with the owner and permissions of e
// where e is one.
func (e entry) plain(content string) entry {
	if !e.Exists || e.Target != "" {
		e = entry{Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid()}
	}
	e.Exists, e.Content = true, []byte(content)
	return e
}

// write puts e at path, at once for whoever reads it, and on disk when it
// returns. A mount point cannot be replaced: it is written to in place.
func write(path string, e entry) error {
	err := replace(path, e)
	if errors.Is(err, unix.EBUSY) {
		err = rewrite(path, e)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// temporary is where the new one is made: always the same name, so that a
// crash leaves at most one, which is found again.
func temporary(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".vpnproviderd")
}

func replace(path string, e entry) error {
	if !e.Exists {
		return os.Remove(path)
	}
	temp := temporary(path)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := e.create(temp)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp) // the first error is the one to tell
	}
	return err
}

func (e entry) create(path string) error {
	if e.Target != "" {
		return os.Symlink(e.Target, path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(e.Content); err == nil {
		// A daemon that is not root may write for others, not in their name.
		if err = f.Chown(e.UID, e.GID); errors.Is(err, fs.ErrPermission) {
			err = nil
		}
	}
	if err == nil {
		err = f.Chmod(e.Mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// rewrite changes the file that is there. Readers never find it empty.
func rewrite(path string, e entry) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(e.Content, 0)
	if err == nil {
		err = f.Truncate(int64(len(e.Content)))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
