package tun

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// Adopt makes a Device of a descriptor that Open has made in an earlier process
// and that was kept since; it must be nonblocking. The interface is in the
// network namespace of the calling thread. Adopt takes the file over, and closes
// it when it fails.
func Adopt(f *os.File) (*Device, error) {
	d := &Device{file: f}
	raw, err := f.SyscallConn()
	if err == nil {
		var problem error
		err = errors.Join(raw.Control(func(fd uintptr) { problem = d.identify(int(fd)) }), problem)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot adopt a TUN: %w", err), f.Close())
	}
	return d, nil
}

// identify finds out which device the descriptor is of, and how it moves
// packets. The super-packets that it takes cannot be read; they are asked for
// again, which changes nothing.
func (d *Device) identify(fd int) error {
	request, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, request); err != nil {
		return os.NewSyscallError("ioctl TUNGETIFF", err)
	}
	d.name = request.Name()
	flags := request.Uint16()
	if flags&unix.IFF_TUN == 0 || flags&unix.IFF_NO_PI == 0 {
		return fmt.Errorf("%s is of another kind (flags %#x)", d.name, flags)
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(socket)
	if d.index, err = interfaceIndex(socket, d.name); err != nil {
		return err
	}
	d.offload = vnet.NoOffload
	if flags&unix.IFF_VNET_HDR != 0 {
		d.offload = withOffload(fd, always)
	}
	return nil
}
