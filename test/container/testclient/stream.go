package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func open(ctx context.Context, session *client.Session, stream bool) (io.ReadWriteCloser, error) {
	if !stream {
		return session.OpenChannel(ctx, client.ChannelOptions{})
	}
	t, err := session.CreatePacketToken(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", t.Stream)
	if err != nil {
		return nil, err
	}
	answer := make([]byte, 3)
	if _, err = fmt.Fprintln(conn, t.Token); err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	if err != nil || string(answer) != "ok\n" {
		conn.Close()
		return nil, fmt.Errorf("the token was not taken: %q, %w", answer, err)
	}
	return framed{conn}, nil
}

// framed has a packet for each Read and Write of a stream.
type framed struct{ net.Conn }

func (f framed) Read(p []byte) (int, error) {
	var length [2]byte
	if _, err := io.ReadFull(f.Conn, length[:]); err != nil {
		return 0, err
	}
	return io.ReadFull(f.Conn, p[:binary.BigEndian.Uint16(length[:])])
}

func (f framed) Write(p []byte) (int, error) {
	_, err := f.Conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
	return len(p), err
}
