package dbus

import (
	"context"
	"errors"
	"os"
	"slices"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/driver"
)

// A provider lives as long as two things do: its connection to the bus, and the
// process that made it. The process alone does not do, as it may leave the bus
// and go on; nor does the connection, which a child of the process has too when
// it was forked with it, and keeps when the process is killed.
//
// So the process is watched, by a pidfd. The bus gives one where it can
// (ProcessFD, since dbus 1.15.8): that is the process, whatever becomes of its
// number. Other buses give the number it had when it connected. Between the end
// of that process and our opening it, which a forked child can stretch, another
// may have got the number. Then that one is watched: a user who brings this about
// keeps a tunnel of their own longer than its provider lives, or loses it
// earlier. That is all: it is never asked who a process is, or what it may do.

// errProcessEnded is answered to what is left of a provider.
var errProcessEnded = driver.Errorf(driver.KindWrongState,
	"the process that connected to the bus has ended: a provider makes its connection itself, and after it has become a daemon")

// watchProcess drops the peer as a provider when its process ends. It is an
// error that it has ended already. That it cannot be watched is none.
func (s *Server) watchProcess(p *peer) error {
	s.calls.mu.Lock()
	watched, ended := p.watched, p.ended
	if p.watched = true; !watched {
		s.calls.tellChanged()
	}
	s.calls.mu.Unlock()
	switch {
	case ended:
		return errProcessEnded
	case watched:
		return nil
	}
	process, err := s.openProcess(p)
	if errors.Is(err, unix.ESRCH) {
		s.processEnded(p)
		return errProcessEnded
	}
	if err != nil {
		s.log.Info("the process of a provider cannot be watched; its connection is", "sender", p.name, "error", err)
		return nil
	}
	context.AfterFunc(p.ctx, func() { _ = process.Close() })
	go func() {
		if awaitEnd(process) == nil {
			s.processEnded(p)
		}
	}()
	return nil
}

// openProcess gives a pidfd of the process that made the peer's connection.
func (s *Server) openProcess(p *peer) (*os.File, error) {
	ctx, cancel := context.WithTimeout(p.ctx, busTimeout)
	defer cancel()
	credentials, fds, err := s.credentials(ctx, p.name)
	defer func() { closeAll(fds) }()
	if err != nil {
		return nil, err
	}
	if fd, ok := credentials["ProcessFD"].Value().(godbus.UnixFD); ok {
		if i := slices.Index(fds, int(fd)); i >= 0 {
			fds = slices.Delete(fds, i, i+1)
			return pollable(int(fd))
		}
	}
	pid, ok := credentials["ProcessID"].Value().(uint32)
	if !ok || !s.sameProcesses {
		return nil, errors.New("the bus does not tell its number")
	}
	fd, err := unix.PidfdOpen(int(pid), unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return pollable(fd)
}

// credentials asks the bus who made a connection.
func (s *Server) credentials(ctx context.Context, name string) (dict, []int, error) {
	m := callOf(busName, "/org/freedesktop/DBus", busName, "GetConnectionCredentials", name)
	body, fds, err := s.stream.Ask(ctx, m)
	if err != nil {
		return nil, fds, err
	}
	var credentials dict
	return credentials, fds, godbus.Store(body, &credentials)
}

// compareProcesses finds out whether the bus numbers processes as we do: it
// may live in another process namespace.
func (s *Server) compareProcesses(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	own, fds, err := s.credentials(ctx, s.conn.Names()[0])
	closeAll(fds)
	pid, ok := own["ProcessID"].Value().(uint32)
	s.sameProcesses = err == nil && ok && int(pid) == os.Getpid()
}

// pollable makes a file of a pidfd, which it owns, that waits without a thread.
func pollable(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "process"), nil
}

// awaitEnd waits until the process of a pidfd has ended; the error is that the
// file was closed before.
func awaitEnd(process *os.File) error {
	raw, err := process.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		return err == nil && n == 1
	})
}

// processEnded takes from the peer what only a live process can have. Its
// connection may be there still, in the hands of a child.
func (s *Server) processEnded(p *peer) {
	s.calls.mu.Lock()
	p.ended = true
	s.calls.tellChanged()
	s.calls.mu.Unlock()
	s.manager.ConnectionGone(p.name)
}

// hasEnded says whether the peer's process has ended, or the peer has left the
// bus: the manager was told, perhaps before it knew what it now knows.
func (s *Server) hasEnded(p *peer) bool {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	return p.ended || p.left
}
