package client

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// defaultMTU is the daemon's, where SetParameters names none.
const defaultMTU = 1500

// ChannelOptions of OpenChannel.
type ChannelOptions struct {
	// Format of the messages on the socket. By default it is the fastest that
	// the daemon has, and the Channel moves packets in any case. With
	// wire.FormatPacket ("packet") a message is one IP packet. With
	// wire.FormatOffload ("offload") it is a virtio_net_hdr of 10 bytes before
	// a packet or super-packet, and the caller makes and takes apart such
	// messages: for those who move them on as they are.
	Format string
}

// ChannelInfo is what the daemon told of a channel when it was opened, as far
// as it concerns the caller: what the methods of the Channel move are messages
// here.
type ChannelInfo struct {
	MTU        int    // bytes, of the tunnel
	Format     string // of the messages
	Batch      int    // more messages a call than this gain nothing
	MaxMessage int    // bytes; a buffer of this size holds every message
}

func channelInfo(from properties) ChannelInfo {
	mtu, batch, maxMessage, format := uint32(defaultMTU), uint32(maxBatch), uint32(65535), "packet"
	get(from, "mtu", &mtu)
	get(from, "batch", &batch)
	get(from, "maxMessage", &maxMessage)
	get(from, "format", &format)
	return ChannelInfo{MTU: int(mtu), Format: format, Batch: int(batch), MaxMessage: int(maxMessage)}
}

// Channel is the packet channel of a session: a socket that moves IP packets, or
// messages of the format that was asked for. It belongs to who opened it. Reading and writing are
// independent of each other; readers, and writers, take turns. No call of it
// allocates.
//
// The end of a session ends the channel: reads give io.EOF, writes
// io.ErrClosedPipe. Closing the channel ends the session, unless another
// channel is opened within 5 s. After Close every call gives os.ErrClosed.
type Channel struct {
	info   ChannelInfo
	mtu    atomic.Int64
	file   *os.File
	closed atomic.Bool
	eof    atomic.Bool
	rx, tx *batch

	offload *offload // makes messages of packets; nil: they are the same
}

// newChannel takes over fd. The channel moves packets, or with raw set
// messages as they are.
func newChannel(fd int, info ChannelInfo, raw bool) (*Channel, error) {
	file, rx, tx, err := openBatches(fd, "packet channel")
	if err != nil {
		return nil, err
	}
	ch := &Channel{info: info, file: file, rx: rx, tx: tx}
	ch.mtu.Store(int64(info.MTU))
	if info.Format == wire.FormatOffload && !raw {
		ch.offload = newOffload(rx, tx)
		ch.info.Format, ch.info.Batch, ch.info.MaxMessage = wire.FormatPacket, maxBatch, longestPacket
	}
	return ch, nil
}

// Info is what the daemon told when the channel was opened.
func (ch *Channel) Info() ChannelInfo { return ch.info }

// MTU of the tunnel in bytes, as of the session's last SetParameters.
func (ch *Channel) MTU() int { return int(ch.mtu.Load()) }

func (ch *Channel) setMTU(mtu uint32) {
	if mtu == 0 {
		mtu = defaultMTU
	}
	ch.mtu.Store(int64(mtu))
}

// ReadPackets waits for packets from the host and fills bufs with as many as
// there are, one each, and sizes with their lengths. A packet longer than its
// buffer is dropped and has size 0; buffers of Info().MaxMessage bytes hold
// every one.
func (ch *Channel) ReadPackets(bufs [][]byte, sizes []int) (n int, err error) {
	if ch.eof.Load() {
		return 0, io.EOF
	}
	if ch.offload != nil {
		n, err = ch.offload.receiver.receive(bufs, sizes)
	} else {
		n, err = ch.rx.receive(bufs, sizes)
	}
	for i := range n {
		if sizes[i] == endOfFile {
			// Also what a daemon out of its mind sends: an empty message is
			// no packet.
			ch.eof.Store(true)
			n = i
			break
		}
	}
	if err == nil && n == 0 {
		return 0, io.EOF
	}
	return n, ch.wrap("read", err)
}

// WritePackets sends packets to the host and returns when all are sent; n are,
// if it fails. Packets of one flow keep their order. The daemon drops what its
// filter refuses and counts it in the session's statistics. Empty packets are
// refused.
func (ch *Channel) WritePackets(packets [][]byte) (n int, err error) {
	if ch.offload != nil {
		n, err = ch.offload.sender.send(packets)
	} else {
		n, err = ch.tx.send(packets)
	}
	return n, ch.wrap("write", err)
}

// Read reads one packet. Where p is too short for it, it is lost and the error
// is io.ErrShortBuffer.
func (ch *Channel) Read(p []byte) (int, error) {
	bufs, sizes := [1][]byte{p}, [1]int{}
	if _, err := ch.ReadPackets(bufs[:], sizes[:]); err != nil {
		return 0, err
	}
	if sizes[0] == 0 {
		return 0, io.ErrShortBuffer
	}
	return sizes[0], nil
}

// Write sends one packet.
func (ch *Channel) Write(p []byte) (int, error) {
	packets := [1][]byte{p}
	if _, err := ch.WritePackets(packets[:]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close closes the channel. Waiting calls return.
func (ch *Channel) Close() error {
	if ch.closed.Swap(true) {
		return os.ErrClosed
	}
	return ch.file.Close()
}

func (ch *Channel) wrap(op string, err error) error {
	switch {
	case err == nil, errors.Is(err, errEmptyPacket), errors.Is(err, io.ErrShortBuffer):
		return err
	case ch.closed.Load():
		return os.ErrClosed
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return io.ErrClosedPipe
	default:
		return fmt.Errorf("cannot %s packets: %w", op, err)
	}
}

var _ io.ReadWriteCloser = (*Channel)(nil)
