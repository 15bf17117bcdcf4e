package wgtun

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// protectTime bounds how long Open waits for the daemon.
const protectTime = 25 * time.Second

// Bind is wireguard-go's own conn.Bind, with sockets that stay out of the
// tunnel. wireguard-go watches routes for its own type alone, so tell it of a
// new network by Device.BindUpdate.
type Bind struct {
	conn.Bind
	session *client.Session
}

// NewBind makes a Bind for the session of its tunnel.
func NewBind(s *client.Session) *Bind {
	return &Bind{Bind: conn.NewStdNetBind(), session: s}
}

// Open implements conn.Bind: it opens the sockets and has them protected,
// before anything is sent through them. Where that fails they are closed.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receive, actual, err := b.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	if err := b.protect(actual); err != nil {
		_ = b.Close()
		return nil, 0, err
	}
	return receive, actual, nil
}

func (b *Bind) protect(port uint16) error {
	ctx, cancel := context.WithTimeout(context.Background(), protectTime)
	defer cancel()
	files, err := sockets(port)
	if err == nil && len(files) == 0 {
		err = errors.New("they were not found")
	}
	for _, f := range files {
		if err == nil {
			err = b.session.Protect(ctx, f)
		}
		_ = f.Close()
	}
	if err != nil {
		return fmt.Errorf("cannot protect the sockets of port %d: %w", port, err)
	}
	return nil
}

// sockets are copies of the process's UDP sockets that are bound to the port
// on every address. The Bind of wireguard-go neither shows its sockets nor lets
// one have a hand in their making, and without its batches and offloads a
// tunnel is several times slower. But one port of all addresses has one
// owner, so these sockets can be told from all others of the process.
func sockets(port uint16) ([]*os.File, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	var found []int // before any is copied: a copy may get a number of the list
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && hasPort(fd, port) {
			found = append(found, fd)
		}
	}
	var files []*os.File
	for _, fd := range found {
		duplicate, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			continue // closed meanwhile
		}
		// The number may have become another file's in between; that of the
		// copy cannot.
		if !hasPort(duplicate, port) {
			_ = unix.Close(duplicate)
			continue
		}
		files = append(files, os.NewFile(uintptr(duplicate), "UDP socket"))
	}
	return files, nil
}

func hasPort(fd int, port uint16) bool {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
		return false
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return name.Port == int(port) && name.Addr == [4]byte{}
	case *unix.SockaddrInet6:
		return name.Port == int(port) && name.Addr == [16]byte{}
	default:
		return false
	}
}

var _ conn.Bind = (*Bind)(nil)
