package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/vpnprovider/vpnproviderd/dbus"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/tun/packetsocket"
)

// socketsName is the FileDescriptorName of vpnproviderd.socket. A unit has one
// name for all its sockets; they are told by their types.
const socketsName = "packets"

// Where packetSockets has them.
const (
	seqpacket = iota
	stream
)

// packetSockets are where clients bring channels with a token.
type packetSockets struct {
	paths   [2]string
	sockets [2]*packetsocket.Socket // nil: not there yet
}

// passedSockets takes over those that systemd has made. The others are to be
// made in the folder.
func passedSockets(given passed, folder string, log *slog.Logger) *packetSockets {
	p := &packetSockets{paths: [2]string{filepath.Join(folder, "packets.sock"), filepath.Join(folder, "packets.stream")}}
	for _, f := range given.take(socketsName) {
		socket, err := packetsocket.Adopt(f)
		if err != nil {
			log.Warn("a socket that was passed is of no use", "error", err)
			continue
		}
		k := seqpacket
		if socket.Stream() {
			k = stream
		}
		if p.sockets[k] != nil {
			log.Warn("a socket of this type was passed already", "socket", socket.Path())
			socket.Close()
			continue
		}
		p.paths[k], p.sockets[k] = socket.Path(), socket
	}
	return p
}

// places is where clients find them.
func (p *packetSockets) places() dbus.PacketSockets {
	return dbus.PacketSockets{SeqPacket: p.paths[seqpacket], Stream: p.paths[stream]}
}

// listen makes those that are not there. The lock on the folder must be held:
// what is in their place, nobody serves.
func (p *packetSockets) listen() (err error) {
	for k, path := range p.paths {
		if p.sockets[k] == nil && err == nil {
			p.sockets[k], err = packetsocket.Listen(path, k == stream)
		}
	}
	return err
}

// serve takes connections until ctx ends.
func (p *packetSockets) serve(ctx context.Context, manager *driver.Manager, log *slog.Logger) {
	server := &packetsocket.Server{Claim: claim(manager), Log: log}
	var serving sync.WaitGroup
	for _, socket := range p.sockets {
		serving.Go(func() { server.Serve(ctx, socket) })
	}
	serving.Wait()
}

// close closes them, and removes those that were made here.
func (p *packetSockets) close() (err error) {
	for _, socket := range p.sockets {
		if socket != nil {
			err = errors.Join(err, socket.Close())
		}
	}
	return err
}

func claim(manager *driver.Manager) packetsocket.Claim {
	return func(uid uint32, token string) (func(*os.File, bool) error, error) {
		attach, err := manager.ClaimToken(uid, token)
		if err != nil {
			return nil, err
		}
		return func(channel *os.File, isStream bool) error {
			format := driver.FormatPacket
			if isStream {
				format = driver.FormatStream
			}
			return attach(channel, format)
		}, nil
	}
}
