package platform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// quiet is how long nothing must have happened before changes are told, so
	// that a file is not read while it is being written; gathering ends at
	// longest after patience.
	quiet    = 300 * time.Millisecond
	patience = 3 * time.Second

	// inFolder are the changes of a folder's files that can be of interest,
	// beside those of the folder itself; aboveFolder are the folder's coming.
	inFolder = unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ATTRIB |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	aboveFolder = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ONLYDIR
)

// Watch calls changed a moment after the files of a folder may have changed,
// which need not be there yet, and once at the beginning, when no change can be
// missed any more; always from the same goroutine. It blocks until ctx ends,
// which is no error. What a symbolic link in the folder leads to is not watched.
func Watch(ctx context.Context, dir string, changed func()) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("cannot watch files: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	_, above := unix.InotifyAddWatch(fd, filepath.Dir(dir), aboveFolder)
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Now()) })
	defer stop()
	for {
		// Again each time: the folder may be another one now.
		if _, err := unix.InotifyAddWatch(fd, dir, inFolder); err != nil && (above != nil || !errors.Is(err, unix.ENOENT)) {
			return fmt.Errorf("cannot watch %s: %w", dir, err)
		}
		changed()
		if err := await(ctx, events); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("cannot watch %s: %w", dir, err)
		}
	}
}

// await waits for an event, and then until there are no more. It may give the
// error of a deadline when ctx has ended.
func await(ctx context.Context, events *os.File) error {
	buf := make([]byte, 64<<10)
	if _, err := events.Read(buf); err != nil {
		return err
	}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if err := events.SetReadDeadline(time.Now().Add(quiet)); err != nil {
			return err
		}
		_, err := events.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := events.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return ctx.Err() // whose deadline may have been overwritten
}
