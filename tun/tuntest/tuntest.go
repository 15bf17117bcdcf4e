// Package tuntest has what tests of the data path need without root: a device
// in memory and packets.
package tuntest

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Device stands in for a TUN: one frame per read and write, nonblocking, in
// Go's poller. It is one end of a socketpair, so unlike a TUN it can be full.
type Device struct{ file *os.File }

// New makes a device and the host's side of it: what is written to host comes
// out of the device as the host's traffic into the tunnel, what is written to
// the device can be read from host. Closing host kills the device as deleting
// the interface kills a TUN. The caller owns both.
func New() (device *Device, host *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a device: %w", os.NewSyscallError("socketpair", err))
	}
	return &Device{os.NewFile(uintptr(fds[0]), "device")}, os.NewFile(uintptr(fds[1]), "host"), nil
}

// Name returns a name that no interface has.
func (d *Device) Name() string { return "tuntest" }

// Index returns the index of no interface.
func (d *Device) Index() int { return 0 }

// SyscallConn gives access to the descriptor.
func (d *Device) SyscallConn() (syscall.RawConn, error) { return d.file.SyscallConn() }

// SetReadDeadline bounds waiting in RawConn.Read.
func (d *Device) SetReadDeadline(t time.Time) error { return d.file.SetReadDeadline(t) }

// Close ends reads and writes under way.
func (d *Device) Close() error { return d.file.Close() }
