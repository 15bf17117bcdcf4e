package tun

import (
	"errors"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// mark is the alias of an interface that a later run of the service removes if
// it finds it.
const mark = "vpnproviderd"

// addHeader has the device put a virtio_net_hdr before each packet. Water
// cannot ask for that, and the kernel lets nobody change it while water's
// descriptor is attached. So the device is made to outlive that descriptor, and
// a new one is attached, whose flags count since it is the only one.
//
// For that moment the device carries the mark: if we die then, it can be told
// whose it is. Nobody else can attach to it: it belongs to root.
//
// Where the kernel refuses, the device stays as water made it. An error means
// that there is none any more. The fork lock must be held.
func (d *Device) addHeader(try attempt) error {
	fd := -1
	err := try("reopen", func() (err error) {
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		return err
	})
	if err == nil {
		err = d.persist(try)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil //nolint:nilerr // it stays as it is
	}
	d.file.Close()
	if err = d.reattach(fd, try); err != nil {
		// It is gone already if that was what failed.
		_ = netlink.LinkDel(d.link())
	}
	d.file = os.NewFile(uintptr(fd), "/dev/net/tun")
	return err
}

// persist marks the device and makes it outlive its descriptor; with an error
// it is as it was.
func (d *Device) persist(try attempt) error {
	err := try("mark", func() error { return netlink.LinkSetAlias(d.link(), mark) })
	if err == nil {
		err = try("persist", func() error {
			raw, err := d.file.SyscallConn()
			if err != nil {
				return err
			}
			var problem error
			err = raw.Control(func(fd uintptr) { problem = setPersistent(int(fd), 1) })
			return errors.Join(err, problem)
		})
	}
	if err != nil {
		return errors.Join(err, netlink.LinkSetAlias(d.link(), ""))
	}
	return nil
}

// reattach makes fd the descriptor of the device that has none, and undoes
// persist.
func (d *Device) reattach(fd int, try attempt) error {
	request, err := unix.NewIfreq(d.name)
	if err != nil {
		return err
	}
	attach := func(step string, flags uint16) error {
		return try(step, func() error {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
			return os.NewSyscallError("ioctl TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
		})
	}
	if attach("attach", unix.IFF_VNET_HDR) == nil {
		d.offload = withOffload(fd, try)
	} else if err := attach("attach plain", 0); err != nil {
		return err
	}
	if err := try("end persistence", func() error { return setPersistent(fd, 0) }); err != nil {
		return err
	}
	return try("unmark", func() error { return netlink.LinkSetAlias(d.link(), "") })
}

func setPersistent(fd, is int) error {
	return os.NewSyscallError("ioctl TUNSETPERSIST", unix.IoctlSetInt(fd, unix.TUNSETPERSIST, is))
}

// withOffload asks the kernel for super-packets, of as many kinds as it has. It
// takes those of TCP in any case.
func withOffload(fd int, try attempt) vnet.Offload {
	const some = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	set := func(step string, features int) error {
		return try(step, func() error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, features) })
	}
	if set("offload all", some|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil {
		return vnet.OffloadAll
	}
	// Refused again: it sends no super-packets, which is fine, too.
	_ = set("offload", some)
	return vnet.OffloadTCP
}

func (d *Device) link() netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: d.index, Name: d.name}}
}
