package packetsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxAddress is how many bytes the path of a socket has at most when it is
// bound.
const maxAddress = 107

// Socket is one that listens.
type Socket struct {
	listener *net.UnixListener
	path     string
	stream   bool
	own      bool // made here, and removed here
}

// Stream says whether it is a SOCK_STREAM socket; SOCK_SEQPACKET otherwise.
func (s *Socket) Stream() bool { return s.stream }

// Path is where clients find it.
func (s *Socket) Path() string { return s.path }

// Adopt takes over a socket that a service manager has made, with what stands
// in the file system. It is f's owner, also where it fails.
func Adopt(f *os.File) (*Socket, error) {
	defer f.Close()
	kind, err := listening(f)
	if err != nil {
		return nil, fmt.Errorf("cannot take over the socket %s: %w", f.Name(), err)
	}
	listener, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("cannot take over the socket %s: %w", f.Name(), err)
	}
	unixListener, ok := listener.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("cannot take over the socket %s: it is not AF_UNIX", f.Name()), listener.Close())
	}
	unixListener.SetUnlinkOnClose(false)
	return &Socket{listener: unixListener, path: listener.Addr().String(), stream: kind == unix.SOCK_STREAM}, nil
}

// listening gives the type of a socket that listens.
func listening(f *os.File) (kind int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var problem error
	err = raw.Control(func(fd uintptr) {
		accepts, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err == nil && accepts == 0 {
			err = errors.New("it does not listen")
		}
		if err == nil {
			kind, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
		}
		problem = err
	})
	return kind, errors.Join(err, problem)
}

// Listen makes a socket to which every user can connect, as far as the folder
// lets them. One that is there already, or a link, is replaced: the caller makes
// sure that nobody serves it. No link is followed at the end of the path.
func Listen(path string, stream bool) (*Socket, error) {
	s, err := listen(path, stream)
	if err != nil {
		return nil, fmt.Errorf("cannot make the socket %s: %w", path, err)
	}
	return s, nil
}

func listen(path string, stream bool) (*Socket, error) {
	folder, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	name := filepath.Base(path)
	info, err := folder.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type()&(fs.ModeSocket|fs.ModeSymlink) == 0:
		return nil, errors.New("something else is there")
	default:
		if err := folder.Remove(name); err != nil {
			return nil, err
		}
	}
	listener, err := bind(folder, path, stream)
	if err != nil {
		return nil, err
	}
	s := &Socket{listener: listener, path: path, stream: stream, own: true}
	if err := folder.Chmod(name, 0o666); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// bind goes through the folder's descriptor where the path is too long for an
// address.
func bind(folder *os.Root, path string, stream bool) (*net.UnixListener, error) {
	network, address := "unixpacket", path
	if stream {
		network = "unix"
	}
	if len(path) > maxAddress {
		f, err := folder.Open(".")
		if err != nil {
			return nil, err
		}
		defer f.Close()
		address = fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), filepath.Base(path))
	}
	listener, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: address})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false) // by another path, perhaps
	return listener, nil
}

// Close stops listening, and removes what was made here. Connections go on.
func (s *Socket) Close() error {
	err := s.listener.Close()
	if s.own {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}
