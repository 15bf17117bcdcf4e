package tun

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// Open makes a TUN device in the network namespace of the calling thread. The
// name has at most 15 bytes and must be free. The device is not persistent,
// belongs to root, and has a short transmit queue; it is down and has no
// addresses. It takes super-packets as far as the kernel lets it, see
// Device.Offload. The caller owns it.
func Open(name string) (*Device, error) { return openBy(name, always) }

// attempt does one step of opening a device. Tests have steps fail.
type attempt func(step string, do func() error) error

func always(_ string, do func() error) error { return do() }

func openBy(name string, try attempt) (*Device, error) {
	device, err := open(name, try)
	if err != nil {
		return nil, fmt.Errorf("cannot open TUN %s: %w", name, err)
	}
	return device, nil
}

// open holds the fork lock for writing: nothing is started meanwhile, so no
// program keeps a descriptor that is closed here, or inherits one. And no
// other open is under way, so a TUN descriptor that is not yet closed on exec
// can be no one's but water's.
func open(name string, try attempt) (*Device, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	// Any socket will do for the ioctls; the service may make no Internet ones.
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(socket)
	if err := checkFree(socket, name); err != nil {
		return nil, err
	}
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	d := &Device{name: name}
	if d.file, err = openWater(name); err != nil {
		return nil, err
	}
	if d.index, err = interfaceIndex(socket, name); err == nil {
		err = try("queue", func() error { return shortenQueue(socket, name) })
	}
	if err == nil {
		err = d.addHeader(try)
	}
	if err != nil {
		return nil, errors.Join(err, d.file.Close())
	}
	return d, nil
}

// openWater lets water open the device and cures what it leaves undone: its
// descriptor is inherited by programs that are started, and when it fails it
// forgets the descriptor instead of closing it. The fork lock must be held.
func openWater(name string) (*os.File, error) {
	device, err := water.New(water.Config{
		DeviceType: water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{
			Name: name,
			// Without an owner any user may attach to a device that nobody
			// is attached to.
			Permissions: &water.DevicePermissions{Owner: 0, Group: 0},
		},
	})
	if err != nil {
		closeForgotten(name)
		return nil, err
	}
	file, ok := device.ReadWriteCloser.(*os.File)
	if !ok {
		return nil, errors.Join(errors.New("water opened no file"), device.Close())
	}
	raw, err := file.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { syscall.CloseOnExec(int(fd)) })
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// closeForgotten closes what a failed water.New has left open: descriptors of
// the TUN driver that are not closed on exec and are attached to no device,
// or to the one that was asked for.
func closeForgotten(name string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // nothing to go by; the descriptor stays
	}
	for _, entry := range entries {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && isForgotten(fd, name) {
			unix.Close(fd)
		}
	}
}

func isForgotten(fd int, name string) bool {
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil || stat.Mode&unix.S_IFMT != unix.S_IFCHR || stat.Rdev != unix.Mkdev(10, 200) {
		return false
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return false
	}
	request, err := unix.NewIfreq("")
	if err != nil {
		return false
	}
	err = unix.IoctlIfreq(fd, unix.TUNGETIFF, request)
	return errors.Is(err, unix.EBADFD) || err == nil && request.Name() == name
}
