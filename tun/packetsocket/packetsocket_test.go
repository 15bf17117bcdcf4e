package packetsocket_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/tun/packetsocket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

const good = "0123456789abcdef0123456789abcdef"

// bench is a server on both kinds of sockets. A channel that it is brought is
// sent what comes, back.
type bench struct {
	folder string
	server *packetsocket.Server

	mu      sync.Mutex
	claimed []uint32 // by whom
}

func newBench(t *testing.T, timeout time.Duration) *bench {
	t.Helper()
	b := &bench{folder: folder(t)}
	b.server = &packetsocket.Server{Claim: b.claim, Timeout: timeout, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	for _, stream := range []bool{false, true} {
		socket, err := packetsocket.Listen(b.path(stream), stream)
		if err != nil {
			t.Fatal(err)
		}
		if socket.Stream() != stream || socket.Path() != b.path(stream) {
			t.Errorf("%+v", socket)
		}
		serving.Go(func() {
			b.server.Serve(ctx, socket)
			if err := socket.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		serving.Wait()
		if left, err := os.ReadDir(b.folder); err != nil || len(left) > 0 {
			t.Errorf("left: %v %v", left, err)
		}
	})
	return b
}

// folder is one that other users may enter.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (b *bench) path(stream bool) string {
	if stream {
		return filepath.Join(b.folder, "packets.stream")
	}
	return filepath.Join(b.folder, "packets.sock")
}

func (b *bench) claim(uid uint32, token string) (func(*os.File, bool) error, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.claimed = append(b.claimed, uid)
	if token != good {
		return nil, errors.New("wrong token")
	}
	return func(channel *os.File, _ bool) error {
		defer channel.Close()
		_, err := io.Copy(channel, channel)
		return err
	}, nil
}

func (b *bench) dial(t testing.TB, stream bool) *net.UnixConn {
	t.Helper()
	conn, err := dial(b.path(stream), stream)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func dial(path string, stream bool) (*net.UnixConn, error) {
	network := "unixpacket"
	if stream {
		network = "unix"
	}
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Net: network, Name: path})
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(patience))
}

func send(t testing.TB, conn *net.UnixConn, text string) {
	t.Helper()
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// answers checks what comes.
func answers(t testing.TB, conn *net.UnixConn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

// refuses checks that the connection ends without an answer.
func refuses(t testing.TB, conn *net.UnixConn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 10)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) || err == nil {
		t.Errorf("%d bytes, %v; want the end", n, err)
	}
}

func TestToken(t *testing.T) {
	b := newBench(t, 0)
	for stream, lines := range map[bool][2]string{false: {good, "ok"}, true: {good + "\n", "ok\n"}} {
		conn := b.dial(t, stream)
		send(t, conn, lines[0])
		answers(t, conn, lines[1])
		send(t, conn, "a packet")
		answers(t, conn, "a packet")
		conn.CloseWrite()
		refuses(t, conn)
	}
	// Packets may follow before the answer.
	conn := b.dial(t, true)
	send(t, conn, good+"\na packet")
	answers(t, conn, "ok\na packet")
	conn.Close()
	for _, uid := range b.claimed {
		if uid != uint32(os.Getuid()) {
			t.Errorf("claimed by %d", uid)
		}
	}
}

// What is not the token ends the connection as soon as that can be told.
func TestWrongToken(t *testing.T) {
	b := newBench(t, 0)
	for _, tt := range []struct {
		stream bool
		text   string
	}{
		{false, strings.Repeat("0", 32)},
		{true, strings.Repeat("0", 32) + "\n"},
		{false, good[:31]},
		{false, good + "0"},
		{false, good + "\n"},
		{false, strings.Repeat("0", 5000)},
		{true, good + good},
		{true, good[:31] + "\n\n"},
		{true, strings.ToUpper(good) + "\n"},
	} {
		conn := b.dial(t, tt.stream)
		send(t, conn, tt.text)
		refuses(t, conn)
	}
}

// A client that takes its time is not waited for, and half a token is none.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	b := newBench(t, 300*time.Millisecond)
	begun := time.Now()
	for stream, half := range map[bool]string{false: "", true: good} {
		conn := b.dial(t, stream)
		if half != "" {
			send(t, conn, half)
		}
		refuses(t, conn)
	}
	if took := time.Since(begun); took < 600*time.Millisecond || took > patience {
		t.Errorf("it took %v", took)
	}
	// Little by little is no way to stay: the time is that of all of it.
	conn := b.dial(t, true)
	begun = time.Now()
	for time.Since(begun) < patience {
		if _, err := conn.Write([]byte{good[0]}); err != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("it took %v", took)
	}
	if len(b.claimed) > 0 {
		t.Errorf("claimed by %v", b.claimed)
	}
}

func TestDefaultTimeout(t *testing.T) {
	t.Parallel()
	b := newBench(t, 0)
	begun := time.Now()
	refuses(t, b.dial(t, true))
	if took := time.Since(begun); took < 5*time.Second || took > patience {
		t.Errorf("it took %v", took)
	}
}

// A user without a token takes no place from others, however often it comes.
func TestFlood(t *testing.T) {
	if os.Getuid() != 0 {
		lacking(t, "root")
	}
	b := newBench(t, time.Minute)
	before := descriptors(t)
	var held []*net.UnixConn
	for i := range 1000 {
		conn := b.dial(t, i%2 == 0)
		held = append(held, conn)
	}
	var reading sync.WaitGroup
	var ended atomic.Int64
	for _, conn := range held {
		conn.SetReadDeadline(time.Time{})
		reading.Go(func() {
			_, _ = conn.Read(make([]byte, 1))
			ended.Add(1)
		})
	}
	eventually(t, "all but a few connections are ended", func() bool { return ended.Load() >= 1000-packetsocket.PerUser })
	others := asUser(t, 54321, func() (conns []*net.UnixConn, err error) {
		for range 2 * packetsocket.PerUser {
			conn, err := dial(b.path(true), true)
			if err != nil {
				return conns, err
			}
			conns = append(conns, conn)
		}
		return conns, nil
	})
	send(t, others[0], good+"\n")
	answers(t, others[0], "ok\n")
	if waiting := 1000 - ended.Load(); waiting != packetsocket.PerUser {
		t.Errorf("%d connections wait", waiting)
	}
	for _, conn := range append(held, others...) {
		conn.Close()
	}
	reading.Wait()
	eventually(t, "no descriptor is left", func() bool { return descriptors(t) <= before })
	conn := b.dial(t, false)
	send(t, conn, good)
	answers(t, conn, "ok")
	conn.Close()
	if len(b.claimed) != 2 || b.claimed[0] != 54321 {
		t.Errorf("claimed by %v", b.claimed)
	}
}

// All users together have a limit, too.
func TestOverall(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		lacking(t, "root")
	}
	b := newBench(t, time.Minute)
	users := packetsocket.Overall / packetsocket.PerUser
	for i := range users + 1 {
		conns := asUser(t, 60000+i, func() (conns []*net.UnixConn, err error) {
			for range packetsocket.PerUser {
				conn, err := dial(b.path(false), false)
				if err != nil {
					return conns, err
				}
				conns = append(conns, conn)
			}
			return conns, nil
		})
		for _, conn := range conns {
			defer conn.Close()
			conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if i == users {
				conn.SetReadDeadline(time.Now().Add(patience))
			}
			_, err := conn.Read(make([]byte, 1))
			if waits := errors.Is(err, os.ErrDeadlineExceeded); waits != (i < users) {
				t.Fatalf("user %d: waits %v, %v", i, waits, err)
			}
		}
	}
}

// asUser does something as another user.
func asUser(t *testing.T, uid int, do func() ([]*net.UnixConn, error)) []*net.UnixConn {
	t.Helper()
	type result struct {
		conns []*net.UnixConn
		err   error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- result{nil, errno}
			return
		}
		conns, err := do()
		done <- result{conns, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.conns
}

// Descriptors that come with the token are closed.
func TestDescriptorsAreClosed(t *testing.T) {
	b := newBench(t, 0)
	for stream, token := range map[bool]string{false: good, true: good + "\n"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		conn := b.dial(t, stream)
		if _, _, err := conn.WriteMsgUnix([]byte(token), unix.UnixRights(int(w.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		w.Close()
		answers(t, conn, "ok")
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("somebody still has the descriptor: %v", err)
		}
		conn.Close()
	}
}

// The end of the server is that of the connections that wait, and of no other.
func TestEnd(t *testing.T) {
	server := &packetsocket.Server{Timeout: time.Minute, Log: slog.New(slog.DiscardHandler)}
	taken := make(chan *os.File, 1)
	server.Claim = func(uint32, string) (func(*os.File, bool) error, error) {
		return func(channel *os.File, _ bool) error {
			taken <- channel
			return nil
		}, nil
	}
	socket, err := packetsocket.Listen(filepath.Join(folder(t), "s"), true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(ctx, socket)
	}()
	waits, err := dial(socket.Path(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer waits.Close()
	serves, err := dial(socket.Path(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer serves.Close()
	send(t, serves, good+"\n")
	answers(t, serves, "ok\n")
	channel := <-taken
	defer channel.Close()
	cancel()
	<-served
	refuses(t, waits)
	if err := socket.Close(); err != nil {
		t.Error(err)
	}
	if _, err := channel.Write([]byte("goes on")); err != nil {
		t.Error(err)
	}
	answers(t, serves, "goes on")
}

func TestListen(t *testing.T) {
	dir := folder(t)
	path := filepath.Join(dir, "s")
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("other's"), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(what string) {
		t.Helper()
		s, err := packetsocket.Listen(path, false)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != fs.ModeSocket|0o666 {
			t.Errorf("%s: %v %v", what, info, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: it is still there: %v", what, err)
		}
	}
	check("nothing is there")
	stale, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	check("a stale one")
	if err := os.Symlink(other, path); err != nil {
		t.Fatal(err)
	}
	check("a link")
	if info, err := os.Stat(other); err != nil || info.Mode() != 0o600 || info.Size() == 0 {
		t.Errorf("the link was followed: %v %v", info, err)
	}
	if err := os.Symlink(filepath.Join(dir, "nowhere"), path); err != nil {
		t.Fatal(err)
	}
	check("a link to nowhere")
	for _, in := range []string{other, dir, filepath.Join(dir, "no/folder")} {
		if s, err := packetsocket.Listen(in, false); err == nil {
			t.Errorf("in the place of %s: %v", in, s)
		}
	}
}

// A path may be longer than an address.
func TestLongPath(t *testing.T) {
	dir := folder(t)
	for range 3 {
		if dir = filepath.Join(dir, strings.Repeat("long", 20)); os.Mkdir(dir, 0o755) != nil {
			t.Fatal("cannot make a folder")
		}
	}
	path := filepath.Join(dir, "s")
	s, err := packetsocket.Listen(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if s.Path() != path {
		t.Errorf("path %s", s.Path())
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o666 {
		t.Errorf("%v %v", info, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Chdir(dir)
	conn, err := dial("s", true)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestAdopt(t *testing.T) {
	dir := folder(t)
	for _, stream := range []bool{false, true} {
		network := map[bool]string{false: "unixpacket", true: "unix"}[stream]
		path := filepath.Join(dir, network)
		l, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		s, err := packetsocket.Adopt(f)
		if err != nil || s.Stream() != stream || s.Path() != path {
			t.Fatalf("%+v, %v", s, err)
		}
		conn, err := dial(path, stream)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err != nil { // it is the manager's
			t.Error(err)
		}
	}

	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcpFile, err := tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	for _, f := range []*os.File{null, tcpFile, os.NewFile(uintptr(fds[0]), "pair")} {
		if s, err := packetsocket.Adopt(f); err == nil {
			t.Errorf("%s: %+v", f.Name(), s)
		}
		if f.Close() == nil {
			t.Errorf("%s is open", f.Name())
		}
	}
}

func lacking(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal("needs " + what)
	}
	t.Skip("needs " + what)
}

func descriptors(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
