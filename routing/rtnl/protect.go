package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

var (
	// ErrNotProtectable is returned for what is not an IPv4 or IPv6 socket of
	// streams or datagrams.
	ErrNotProtectable = errors.New("not a stream or datagram socket of IPv4 or IPv6")

	// ErrBoundToTunnel is returned for a socket whose local address is the
	// tunnel's: it would keep that address, and show it in the clear.
	ErrBoundToTunnel = errors.New("bound to an address of the tunnel: protect before connect")
)

// Protect exempts one socket from the tunnel whose addresses are given: its
// packets go where they would without it. It sets one byte of the socket's
// mark, which no unprivileged process can take back, and leaves the others. It
// does not keep f. The errors above are for the caller; any other means that
// the kernel refused.
func Protect(f *os.File, tunnel []netip.Addr) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("cannot protect the socket: %w", err)
	}
	var inner error
	if err = raw.Control(func(fd uintptr) { inner = protect(int(fd), tunnel) }); err == nil {
		err = inner
	}
	if err != nil {
		return fmt.Errorf("cannot protect the socket: %w", err)
	}
	return nil
}

func protect(fd int, tunnel []netip.Addr) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_INET && domain != unix.AF_INET6 {
		return ErrNotProtectable
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_STREAM && kind != unix.SOCK_DGRAM {
		return ErrNotProtectable
	}
	// Marked first, asked for its address then: a socket that connects at the
	// same time either has the mark when its address is chosen, or is seen.
	mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
	if err != nil {
		return fmt.Errorf("cannot read its mark: %w", err)
	}
	protected := uint32(mark)&^routing.MarkByte | routing.MarkProtected
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(protected)); err != nil {
		return fmt.Errorf("cannot set its mark: %w", err)
	}
	local, err := localAddr(fd)
	if err == nil && slices.Contains(tunnel, local) {
		err = ErrBoundToTunnel
	}
	if err != nil {
		return errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark))
	}
	return nil
}

func localAddr(fd int) (netip.Addr, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("cannot read its address: %w", err)
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr), nil
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr).Unmap(), nil
	}
	return netip.Addr{}, ErrNotProtectable
}
