package openconnect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How often new sockets are looked for: while a connection is being made, and
// later, for those of a reconnect. A first packet that was held back is sent
// again after a second.
const (
	lookOften  = 10 * time.Millisecond
	lookSeldom = 200 * time.Millisecond
	oftenTime  = 15 * time.Second
)

// ErrForbidden is that this system does not let a parent have its child's
// sockets.
var ErrForbidden = errors.New("this system does not let a program have the sockets of one that it started (kernel.yama.ptrace_scope above 1?)")

// Exempt hands a copy of each internet socket that openconnect opens to
// protect, until openconnect ends or ctx does. protect does not keep it. The
// error is that it cannot be done on this system; single sockets that could not
// be protected are told to report.
func (p *Process) Exempt(ctx context.Context, protect func(*os.File) error, report func(error)) error {
	pid := p.cmd.Process.Pid
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil //nolint:nilerr // it has ended already
	}
	defer unix.Close(process)
	seen := make(map[string]bool)
	begun := time.Now()
	for {
		if err := exemptNew(pid, process, seen, protect, report); err != nil {
			return err
		}
		wait := lookOften
		if time.Since(begun) > oftenTime {
			wait = lookSeldom
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.done:
			return nil
		case <-time.After(wait):
		}
	}
}

// exemptNew looks once. A socket is known by its number in the file system of
// sockets: descriptors are used again.
func exemptNew(pid, process int, seen map[string]bool, protect func(*os.File) error, report func(error)) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil //nolint:nilerr // it has ended
	}
	for _, entry := range list {
		name, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err != nil || seen[name] || !strings.HasPrefix(name, "socket:") {
			continue
		}
		number, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(process, number, 0)
		switch {
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
			return fmt.Errorf("%w: %w", ErrForbidden, err)
		case err != nil:
			continue // closed meanwhile
		}
		socket := os.NewFile(uintptr(fd), name)
		if is, same := internet(fd, name); same {
			seen[name] = true
			if is {
				if err := protect(socket); err != nil {
					report(err)
				}
			}
		}
		_ = socket.Close()
	}
	return nil
}

// internet says whether the descriptor is an IPv4 or IPv6 socket, and whether
// it is still the socket of that name.
func internet(fd int, name string) (is, same bool) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || name != fmt.Sprintf("socket:[%d]", stat.Ino) {
		return false, false
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return err == nil && (domain == unix.AF_INET || domain == unix.AF_INET6), true
}
