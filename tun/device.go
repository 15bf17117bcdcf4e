package tun

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// TxQueueLen is the length in packets of the transmit queue that Open gives a
// device. It is the only queue in front of a slow client. The kernel's 500
// can hold seconds of delay; 100 costs no throughput.
const TxQueueLen = 100

// Device is a TUN device and the only descriptor of it in this process: closing
// it removes the interface with its addresses and routes, unless a copy is kept
// elsewhere. The descriptor is nonblocking, closed on exec, and transfers one
// packet or super-packet per read and write, as Offload says. All methods may be
// called at any time by any goroutine.
type Device struct {
	file    *os.File
	name    string
	index   int
	offload vnet.Offload
}

// Name returns the interface's name as it was at Open.
func (d *Device) Name() string { return d.name }

// Index returns the interface's index, which never changes.
func (d *Device) Index() int { return d.index }

// Offload tells which super-packets the device takes. Unless it is
// vnet.NoOffload, there is a virtio_net_hdr before each packet.
func (d *Device) Offload() vnet.Offload { return d.offload }

// SyscallConn gives access to the descriptor, in Go's poller.
func (d *Device) SyscallConn() (syscall.RawConn, error) { return d.file.SyscallConn() }

// SetReadDeadline bounds waiting in RawConn.Read.
func (d *Device) SetReadDeadline(t time.Time) error { return d.file.SetReadDeadline(t) }

// Close removes the interface and ends reads and writes under way. It takes
// about 20 ms, in which the kernel waits for all users of the interface. If
// this process is just starting a program, the interface lasts until that is
// executed.
func (d *Device) Close() error { return d.file.Close() }

// checkName refuses names that the kernel would refuse, complete or cut.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("invalid interface name %q", name)
	case len(name) >= unix.IFNAMSIZ:
		return fmt.Errorf("invalid interface name %q: longer than %d bytes", name, unix.IFNAMSIZ-1)
	case strings.ContainsAny(name, "/:% \t\n\v\f\r\x00"), strings.IndexByte(name, 0xa0) >= 0:
		return fmt.Errorf("invalid interface name %q", name)
	}
	return nil
}

// interfaceIndex returns the index of the interface, or ENODEV.
func interfaceIndex(socket int, name string) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("invalid interface name %q", name)
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFINDEX, request); err != nil {
		return 0, os.NewSyscallError("ioctl SIOCGIFINDEX", err)
	}
	return int(request.Uint32()), nil
}

// checkFree refuses the name of an interface that exists: if it were a
// persistent TUN of somebody else, we would attach to it.
func checkFree(socket int, name string) error {
	_, err := interfaceIndex(socket, name)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("interface %s exists", name)
	}
	return err
}

// shortenQueue sets the transmit queue of the interface.
func shortenQueue(socket int, name string) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("invalid interface name %q", name)
	}
	request.SetUint32(TxQueueLen)
	return os.NewSyscallError("ioctl SIOCSIFTXQLEN", unix.IoctlIfreq(socket, unix.SIOCSIFTXQLEN, request))
}
