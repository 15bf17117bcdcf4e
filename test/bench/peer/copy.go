package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/vpnprovider/vpnproviderd/test/bench"
)

// Modes of copy.
const (
	plain = "plain" // one packet a system call
	split = "split" // super-packets, taken apart and put together
	whole = "whole" // super-packets as they are
)

// largest is the size of a buffer for every packet and super-packet, with the
// kernel's header.
const largest = 65535 + virtioHeader

// virtioHeader is the size of struct virtio_net_hdr.
const virtioHeader = 10

// The TUNs, and what else a peer inherits.
const (
	firstFile  = 3
	secondFile = 4
)

// copyPackets moves packets between two TUNs, until it is killed.
func copyPackets(o options) (r bench.Result, err error) {
	switch o.mode {
	case plain, whole: // a super-packet is not looked at either
		near, err := inherited(firstFile)
		if err != nil {
			return r, err
		}
		far, err := inherited(secondFile)
		if err != nil {
			return r, err
		}
		ready()
		return r, both(func() error { return copyEach(near, far) }, func() error { return copyEach(far, near) })
	case split:
		near, err := tunDevice(firstFile)
		if err != nil {
			return r, err
		}
		far, err := tunDevice(secondFile)
		if err != nil {
			return r, err
		}
		ready()
		return r, both(func() error { return copyBatches(near, far, largest) }, func() error { return copyBatches(far, near, largest) })
	default:
		return r, fmt.Errorf("unknown mode %q", o.mode)
	}
}

// both runs two directions and returns the error of the one that ends first.
func both(one, other func() error) error {
	ended := make(chan error, 2)
	go func() { ended <- one() }()
	go func() { ended <- other() }()
	return <-ended
}

func inherited(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("cannot use descriptor %d: %w", fd, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("descriptor %d", fd)), nil
}

// tunDevice is wireguard-go's own, with its splitting and coalescing.
func tunDevice(fd int) (wgtun.Device, error) {
	device, _, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	return device, err
}

// stream moves one message a call; *os.File and *client.Channel do.
type stream interface {
	Read(p []byte) (int, error)
	Write(p []byte) (int, error)
}

// copyEach ends when it cannot read. What cannot be written is lost, as it is
// on every link: the kernel refuses what it sends before its interface is up.
func copyEach(from, to stream) error {
	buf := make([]byte, largest)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return err
		}
		_, _ = to.Write(buf[:n])
	}
}

// batches is the part of wireguard-go's tun.Device that moves packets: each has
// its buffer, and begins at the offset.
type batches interface {
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
	Write(bufs [][]byte, offset int) (int, error)
}

// batchSize is wireguard-go's.
const batchSize = 128

// copyBatches is copyEach, many at a time. The size of the buffers is for
// wireguard-go the largest: there packets are put together in the buffer of the
// first.
func copyBatches(from, to batches, size int) error {
	bufs, sizes := make([][]byte, batchSize), make([]int, batchSize)
	arena := make([]byte, batchSize*size)
	for i := range bufs {
		bufs[i] = arena[i*size:][:size:size]
	}
	filled := make([][]byte, 0, batchSize)
	for {
		n, err := from.Read(bufs, sizes, virtioHeader)
		if err != nil && !errors.Is(err, wgtun.ErrTooManySegments) {
			return err
		}
		filled = filled[:0]
		for i := range n {
			if sizes[i] > 0 {
				filled = append(filled, bufs[i][:virtioHeader+sizes[i]])
			}
		}
		_, _ = to.Write(filled, virtioHeader)
	}
}
