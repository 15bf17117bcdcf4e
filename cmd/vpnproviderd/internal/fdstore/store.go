// Package fdstore keeps descriptors in systemd while the service is not
// running: sd_notify(3) under FDSTORE. They come back at its next start,
// whether it was restarted, was killed or crashed.
//
// Without systemd nothing is kept, and nothing fails.
package fdstore

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sendTimeout is how long systemd may take to accept a message.
const sendTimeout = 2 * time.Second

// Store is the descriptors that systemd keeps for this process. Its methods
// may be called concurrently.
type Store struct {
	address string // of systemd; empty: nobody keeps anything
	log     *slog.Logger

	mu        sync.Mutex
	inherited map[string][]*os.File
}

// prefix of what is in the store tells it from other descriptors that systemd
// passes.
const prefix = "kept."

// Open takes over what an earlier process has left in the store, out of all that
// systemd has passed, by name.
func Open(passed map[string][]*os.File, log *slog.Logger) *Store {
	s := &Store{address: os.Getenv("NOTIFY_SOCKET"), log: log, inherited: make(map[string][]*os.File)}
	for whole, files := range passed {
		if name, ok := strings.CutPrefix(whole, prefix); ok {
			s.inherited[name] = files
			delete(passed, whole)
		}
	}
	return s
}

// Active says whether there is somebody who could keep descriptors.
func (s *Store) Active() bool { return s.address != "" }

// Names are those of the inherited descriptors that nobody has taken.
func (s *Store) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.inherited))
	for name := range s.inherited {
		names = append(names, name)
	}
	return names
}

// Take gives the inherited descriptors of a name. The caller owns them; what
// is in the store stays there.
func (s *Store) Take(name string) []*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.inherited[name]
	delete(s.inherited, name)
	return files
}

// Put stores a copy of the descriptor under a name, which is unused so far and
// has no colon. Once Put has returned, the copy outlives the process. systemd
// keeps it also when the other end is closed.
func (s *Store) Put(name string, f syscall.Conn) error {
	if !s.Active() {
		return nil
	}
	raw, err := f.SyscallConn()
	if err == nil {
		var sent error
		err = raw.Control(func(fd uintptr) {
			sent = s.send("FDSTORE=1\nFDNAME="+prefix+name+"\nFDPOLL=0", unix.UnixRights(int(fd)))
		})
		if err == nil {
			err = sent
		}
	}
	if err != nil {
		return fmt.Errorf("cannot keep the descriptor %s: %w", name, err)
	}
	return nil
}

// Remove has the store forget what has that name; there need not be anything.
// systemd closes its copy soon afterwards.
func (s *Store) Remove(name string) {
	if !s.Active() {
		return
	}
	if err := s.send("FDSTOREREMOVE=1\nFDNAME="+prefix+name, nil); err != nil {
		s.log.Error("cannot give up a kept descriptor", "name", name, "error", err)
	}
}

// Discard closes what nobody has taken, and has the store forget it.
func (s *Store) Discard() {
	for _, name := range s.Names() {
		s.log.Warn("a descriptor that was kept is not needed", "name", name)
		s.Remove(name)
		for _, f := range s.Take(name) {
			f.Close()
		}
	}
}

func (s *Store) send(text string, rights []byte) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(sendTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Sendmsg(fd, []byte(text), rights, &unix.SockaddrUnix{Name: s.address}, unix.MSG_NOSIGNAL)
	}
	return os.NewSyscallError("sendmsg", err)
}
