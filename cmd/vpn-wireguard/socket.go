package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/tunnel"
)

// What WireGuard tells of the tunnels is read from a socket of the serving
// process: who connects gets one JSON object, the tunnels by name, and the end
// of file. There is nothing to be asked, and nothing secret to be told; still
// it is the user's own business.

// socketTime bounds one answer.
const socketTime = 5 * time.Second

func socketPath() (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		return "", errors.New("XDG_RUNTIME_DIR is not set")
	}
	return filepath.Join(dir, "vpn-wireguard.sock"), nil
}

type statusSocket struct {
	listener *net.UnixListener
	answers  sync.WaitGroup
}

// listen answers on the socket until it is closed. What a killed process left
// there is removed: there is one provider a user, and that is us.
func (s *server) listen() (*statusSocket, error) {
	path, err := socketPath()
	if err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = listener.Close()
		return nil, err
	}
	socket := &statusSocket{listener: listener}
	socket.answers.Go(func() {
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return // closed
			}
			socket.answers.Go(func() { s.answer(conn) })
		}
	})
	return socket, nil
}

func (socket *statusSocket) close() {
	_ = socket.listener.Close()
	socket.answers.Wait()
}

func (s *server) answer(conn *net.UnixConn) {
	defer conn.Close()
	if !mayAsk(conn) {
		return
	}
	_ = conn.SetDeadline(time.Now().Add(socketTime))
	_ = json.NewEncoder(conn).Encode(s.statuses()) // who asks finds an end that is too soon
}

// mayAsk reports whether the other end is the same user, or root.
func mayAsk(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	err = raw.Control(func(fd uintptr) {
		peer, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return err == nil && peer != nil && (peer.Uid == 0 || int(peer.Uid) == os.Getuid())
}

// askStatuses reads what the serving process tells; nothing where there is
// none.
func askStatuses(ctx context.Context) (map[string]tunnel.Status, error) {
	path, err := socketPath()
	if err != nil {
		return nil, fmt.Errorf("cannot ask for the status: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, socketTime)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot ask for the status: %w", err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	var all map[string]tunnel.Status
	if err := json.NewDecoder(conn).Decode(&all); err != nil {
		return nil, fmt.Errorf("cannot read the status: %w", err)
	}
	return all, nil
}
