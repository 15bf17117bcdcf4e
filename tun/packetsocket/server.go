package packetsocket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tokenLen is how many digits a token has.
	tokenLen = 32

	// DefaultTimeout is how long a client may take for its token.
	DefaultTimeout = 5 * time.Second

	// PerUser is how many connections without a token a user has at once.
	PerUser = 16

	// Overall is how many all users have.
	Overall = 256

	// acceptPause is how long it waits where the kernel gives no connection: it
	// has no descriptors left, say.
	acceptPause = 100 * time.Millisecond
)

// Claim takes a token that a process of uid presents. What it returns makes the
// connection a channel and owns the file, also where it fails. An error ends
// the connection; the client is not told why.
type Claim func(uid uint32, token string) (attach func(channel *os.File, stream bool) error, err error)

// Server takes the connections of sockets. Its methods may be called by any
// goroutine.
type Server struct {
	// Claim is called by several goroutines at once.
	Claim Claim

	// Timeout is DefaultTimeout where it is 0.
	Timeout time.Duration

	Log *slog.Logger

	mu      sync.Mutex
	waiting map[*net.UnixConn]uint32 // connections without a token, and their users
	users   map[uint32]int           // how many that are
	ended   bool
}

// Serve takes the socket's connections until ctx ends or the socket is closed,
// and those under way have ended; the end of ctx ends those that have no token.
// The socket stays the caller's.
func (s *Server) Serve(ctx context.Context, socket *Socket) {
	var serving sync.WaitGroup
	defer serving.Wait()
	stop := context.AfterFunc(ctx, func() {
		s.end()
		_ = socket.listener.SetDeadline(time.Unix(1, 0)) // fails where it is closed
	})
	defer stop()
	for ctx.Err() == nil {
		conn, err := socket.listener.AcceptUnix()
		switch {
		case err == nil:
			s.begin(&serving, conn, socket.stream)
		case errors.Is(err, net.ErrClosed):
			return
		case !errors.Is(err, os.ErrDeadlineExceeded):
			s.Log.Warn("cannot accept a connection", "socket", socket.path, "error", err)
			pause(ctx)
		}
	}
}

func pause(ctx context.Context) {
	timer := time.NewTimer(acceptPause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// begin serves a connection in a goroutine of its own, if there is a place.
func (s *Server) begin(serving *sync.WaitGroup, conn *net.UnixConn, stream bool) {
	uid, err := peer(conn)
	if err == nil {
		err = s.enter(conn, uid)
	}
	if err != nil {
		s.Log.Debug("a connection to the packet socket was refused", "uid", uid, "error", err)
		conn.Close()
		return
	}
	serving.Go(func() {
		defer s.leave(conn)
		if err := s.serve(conn, uid, stream); err != nil {
			s.Log.Debug("a connection to the packet socket was refused", "uid", uid, "error", err)
		}
	})
}

// peer is whose process has connected.
func peer(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var credentials *unix.Ucred
	var problem error
	err = raw.Control(func(fd uintptr) {
		credentials, problem = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, problem); err != nil {
		return 0, err
	}
	return credentials.Uid, nil
}

// enter takes a place, and makes sure that it is given back in time.
func (s *Server) enter(conn *net.UnixConn, uid uint32) error {
	timeout := s.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return net.ErrClosed
	case s.users[uid] >= PerUser:
		return fmt.Errorf("%d connections of this user have no token", PerUser)
	case len(s.waiting) >= Overall:
		return fmt.Errorf("%d connections have no token", Overall)
	}
	if s.waiting == nil {
		s.waiting, s.users = make(map[*net.UnixConn]uint32), make(map[uint32]int)
	}
	s.waiting[conn] = uid
	s.users[uid]++
	return nil
}

// leave gives the place back, and closes the connection: a channel is a copy.
func (s *Server) leave(conn *net.UnixConn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	uid := s.waiting[conn]
	delete(s.waiting, conn)
	if s.users[uid]--; s.users[uid] == 0 {
		delete(s.users, uid)
	}
}

// end ends the connections that have no token, and takes no more.
func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for conn := range s.waiting {
		_ = conn.SetDeadline(time.Unix(1, 0)) // fails where it is closed
	}
}

// serve makes one connection a channel. Descriptors that come with the token are
// closed by the kernel: there is no room for them.
func (s *Server) serve(conn *net.UnixConn, uid uint32, stream bool) error {
	token, err := readToken(conn, stream)
	if err != nil {
		return fmt.Errorf("cannot read the token: %w", err)
	}
	attach, err := s.Claim(uid, token)
	if err != nil {
		return err
	}
	// Before the first packet, and read in any case: should the session end
	// right now, the connection does, too.
	answer := "ok"
	if stream {
		answer = "ok\n"
	}
	if _, err := conn.Write([]byte(answer)); err != nil {
		return fmt.Errorf("cannot answer: %w", err)
	}
	channel, err := conn.File()
	if err != nil {
		return fmt.Errorf("cannot hand on the connection: %w", err)
	}
	return attach(channel, stream)
}

// readToken reads the token and nothing behind it: packets may follow at once.
func readToken(conn *net.UnixConn, stream bool) (string, error) {
	var b [tokenLen + 1]byte
	if stream {
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return "", err
		}
		if b[tokenLen] != '\n' {
			return "", errors.New("it does not end with a newline")
		}
		return string(b[:tokenLen]), nil
	}
	n, err := conn.Read(b[:])
	switch {
	case err != nil:
		return "", err
	case n != tokenLen:
		return "", fmt.Errorf("it has %d bytes or more, not %d", n, tokenLen)
	}
	return string(b[:tokenLen]), nil
}
