package system

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// kinds are the packet sockets, by their key in what CreatePacketToken answers.
func kinds() map[string]string {
	return map[string]string{"seqpacket": "unixpacket", "stream": "unix"}
}

// token asks for one, and for the paths of the sockets.
func (v *vpn) token(session godbus.ObjectPath) (token string, sockets map[string]string) {
	v.t.Helper()
	var paths dict
	v.provider.must(v.provider.on(session, "CreatePacketToken", dict{}), &token, &paths)
	sockets = make(map[string]string)
	for kind, path := range paths {
		sockets[kind], _ = path.Value().(string)
	}
	return token, sockets
}

// dialAs connects to a packet socket as a user.
func (m *machine) dialAs(t testing.TB, uid int, kind string) *net.UnixConn {
	t.Helper()
	conn, err := m.tryDial(uid, kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (m *machine) tryDial(uid int, kind string) (conn *net.UnixConn, err error) {
	path := filepath.Join(m.daemon.RuntimeDir, map[string]string{"seqpacket": "packets.sock", "stream": "packets.stream"}[kind])
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its user
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			err = errno
			return
		}
		if conn, err = net.DialUnix(kinds()[kind], nil, &net.UnixAddr{Net: kinds()[kind], Name: path}); err == nil {
			err = conn.SetDeadline(time.Now().Add(2 * harness.Timeout))
		}
	}()
	<-done
	return conn, err
}

// present sends a token, and says whether it was good.
func present(t testing.TB, conn *net.UnixConn, kind, token string) bool {
	t.Helper()
	end := ""
	if kind == "stream" {
		end = "\n"
	}
	if _, err := conn.Write([]byte(token + end)); err != nil {
		return false
	}
	answer := make([]byte, len("ok"+end))
	_, err := io.ReadFull(conn, answer)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("no answer, and no end")
	}
	if err == nil && string(answer) != "ok"+end {
		t.Fatalf("the answer is %q", answer)
	}
	return err == nil
}

// bring makes a new connection the session's channel, and serves it.
func (v *vpn) bring(session godbus.ObjectPath, kind string) *endpoint {
	v.t.Helper()
	token, sockets := v.token(session)
	if want := filepath.Join(v.daemon.RuntimeDir, "packets."+map[string]string{"seqpacket": "sock", "stream": "stream"}[kind]); sockets[kind] != want {
		v.t.Errorf("the sockets are %v", sockets)
	}
	conn := v.dialAs(v.t, harness.Alice, kind)
	if !present(v.t, conn, kind, token) {
		v.t.Fatalf("%s: the token was refused:\n%s", kind, v.daemon.Process().Output())
	}
	conn.SetDeadline(time.Time{})
	if kind == "stream" {
		return serve(v.t, framed{conn})
	}
	return serve(v.t, conn)
}

// framed has a packet for each Read and Write of a stream.
type framed struct{ *net.UnixConn }

func (f framed) Read(p []byte) (int, error) {
	var length [2]byte
	if _, err := io.ReadFull(f.UnixConn, length[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	return io.ReadFull(f.UnixConn, p[:n])
}

func (f framed) Write(p []byte) (int, error) {
	if _, err := f.UnixConn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// A connection that presents a token is the session's channel, of either kind:
// packets pass, another takes its place, and without one the session ends.
func TestPacketSocket(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			v := m.party(t, harness.Alice, app)
			session := v.connect()
			channel := v.bring(session, kind)
			v.configure(session, fullTunnel())
			v.notify(session, wire.NotifyConnected)
			v.ping(t, "2", includedIPv4)
			v.ping(t, "2", includedIPv6)
			fds := v.descriptors(t)
			for range 10 {
				next := v.bring(session, kind)
				channel.awaitEnd(t)
				channel = next
				v.ping(t, "1", includedIPv4)
			}
			next := v.open(session)
			channel.awaitEnd(t)
			v.ping(t, "1", includedIPv4)
			channel = v.bring(session, kind)
			next.awaitEnd(t)
			v.requireDescriptors(t, fds)

			begun := time.Now()
			channel.file.Close()
			v.ui.traceTo("config failed (channel closed)", v.config)
			if took := time.Since(begun); took < 5*time.Second {
				t.Errorf("the session ended after %v", took)
			}
			v.provider.must(v.provider.manager("UnregisterProvider", app, dict{}))
		})
	}
}

// Whoever has no token, or not the right one, gets nothing; the channel that is
// there goes on.
func TestPacketSocketRefuses(t *testing.T) {
	t.Parallel()
	v := newVPN(t, "--log-level", "debug")
	session, _ := v.establish()
	fds := v.descriptors(t)
	other := strings.Repeat("0", 32)
	for kind := range kinds() {
		good, _ := v.token(session)
		for _, wrong := range []string{other, strings.ToUpper(good), good[:31] + "\n", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"} {
			if wrong != good && present(t, v.dialAs(t, harness.Alice, kind), kind, wrong) {
				t.Errorf("%s: %q is good", kind, wrong)
			}
		}
		for _, uid := range []int{harness.Bob, 0} {
			if present(t, v.dialAs(t, uid, kind), kind, good) {
				t.Errorf("%s: good for user %d", kind, uid)
			}
		}
		v.ping(t, "1", includedIPv4)
		conn := v.dialAs(t, harness.Alice, kind)
		if !present(t, conn, kind, good) {
			t.Errorf("%s: the token is used up", kind)
		}
		if present(t, v.dialAs(t, harness.Alice, kind), kind, good) {
			t.Errorf("%s: good again", kind)
		}
		v.open(session)
		conn.Close()
		v.ping(t, "1", includedIPv4)
	}
	v.requireDescriptors(t, fds)
	for _, secret := range []string{other, "HTTP"} {
		if strings.Contains(v.daemon.Process().Output(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
}

// A token is good for 30 seconds, and half of one for 5: this takes so long, so
// both are waited for together.
func TestPacketSocketInTime(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session, _ := v.establish()
	late, _ := v.token(session)
	begun := time.Now()
	half, silent := v.dialAs(t, harness.Alice, "stream"), v.dialAs(t, harness.Alice, "seqpacket")
	if _, err := half.Write([]byte(late[:16])); err != nil {
		t.Fatal(err)
	}
	for _, conn := range []*net.UnixConn{half, silent} {
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes, %v", n, err)
		}
		if took := time.Since(begun); took < 5*time.Second || took > harness.Timeout {
			t.Errorf("ended after %v", took)
		}
	}
	time.Sleep(time.Until(begun.Add(30*time.Second + 100*time.Millisecond))) // the time is what is tested
	if present(t, v.dialAs(t, harness.Alice, "stream"), "stream", late) {
		t.Error("the token is good for ever")
	}
	v.ping(t, "1", includedIPv4)
}

// Thousands of connections by one user cost the daemon a few descriptors for
// seconds, and others nothing.
func TestPacketSocketFlood(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session := v.connect()
	v.configure(session, fullTunnel())
	fds := v.descriptors(t)
	var flood sync.WaitGroup
	var mu sync.Mutex
	var held []*net.UnixConn
	for range 4 {
		flood.Go(func() {
			for i := range 250 {
				if conn, err := v.tryDial(harness.Bob, []string{"stream", "seqpacket"}[i%2]); err == nil {
					mu.Lock()
					held = append(held, conn)
					mu.Unlock()
				}
			}
		})
	}
	for range 10 {
		v.bring(session, "stream")
		v.ping(t, "1", includedIPv4)
	}
	flood.Wait()
	if len(held) != 1000 {
		t.Errorf("%d connections were made", len(held))
	}
	if n := v.descriptors(t); n > fds+2+16 {
		t.Errorf("%d descriptors, %d before", n, fds)
	}
	v.requireDescriptors(t, fds+2) // the channel
	for _, conn := range held {
		conn.Close()
	}
	v.bring(session, "seqpacket")
	v.ping(t, "1", includedIPv4)
	v.disconnect()
	v.requireDescriptors(t, fds)
}

// Much data passes as it is, through a stream, in both directions.
func TestPacketStreamTransfer(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session := v.connect()
	v.bring(session, "stream")
	v.configure(session, fullTunnel())
	socket, err := v.Host.Dial("udp", netip.AddrPortFrom(addr(includedIPv4), echoPort).String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	const count, window, size = 20_000, 20, 1300
	sent, got := sha256.New(), sha256.New()
	packet, answer := make([]byte, size), make([]byte, 2048)
	begun := time.Now()
	for i := range count / window {
		for j := range window { // no more than the queue of the TUN holds
			binary.BigEndian.PutUint64(packet, uint64(i*window+j))
			sent.Write(packet)
			if _, err := socket.Write(packet); err != nil {
				t.Fatal(err)
			}
		}
		for range window {
			socket.SetReadDeadline(time.Now().Add(harness.Timeout))
			n, err := socket.Read(answer)
			if err != nil {
				t.Fatalf("window %d: %v", i, err)
			}
			got.Write(answer[:n])
		}
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Error("what came back is something else")
	}
	took := time.Since(begun)
	t.Logf("%d datagrams there and back in %v, %.0f MB/s each way", count, took, float64(count*size)/1e6/took.Seconds())
}

// The death of the program that has the channel is the channel's end, whoever is
// the provider.
func TestPacketSocketClientKilled(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session := v.connect()
	v.configure(session, fullTunnel())
	token, sockets := v.token(session)
	harness.Require(t, "/usr/bin/python3")
	const program = `import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.argv[2].encode() + b"\n")
print("answer", s.recv(3), flush=True)
while s.recv(65536): pass`
	client := v.Host.Start(t, harness.Command{Argv: []string{"/usr/bin/python3", "-c", program, sockets["stream"], token}, UID: harness.Alice})
	client.Await(t, `answer b'ok\\n'`)
	client.Kill()
	begun := time.Now()
	v.ui.traceTo("config failed (channel closed)", v.config)
	if took := time.Since(begun); took < 4*time.Second {
		t.Errorf("the session ended after %v", took)
	}
}

// The sockets come and go with the daemon, and those that a crash left, or
// links, are replaced.
func TestPacketSocketFiles(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	paths := []string{filepath.Join(m.daemon.RuntimeDir, "packets.sock"), filepath.Join(m.daemon.RuntimeDir, "packets.stream")}
	check := func(there bool) {
		t.Helper()
		for _, path := range paths {
			info, err := os.Lstat(path)
			switch {
			case !there && !errors.Is(err, fs.ErrNotExist):
				t.Errorf("%s is there: %v", path, err)
			case there && (err != nil || info.Mode() != fs.ModeSocket|0o666):
				t.Errorf("%s: %v %v", path, info, err)
			}
		}
	}
	check(true)
	m.daemon.Stop(t)
	check(false)
	m.daemon.Start(t)
	m.daemon.Kill9()
	check(true)
	elsewhere := filepath.Join(harness.TempDir(t), "elsewhere")
	if err := os.WriteFile(elsewhere, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(paths[1]), os.Symlink(elsewhere, paths[1])); err != nil {
		t.Fatal(err)
	}
	m.daemon.Start(t)
	check(true)
	if info, err := os.Stat(elsewhere); err != nil || info.Mode() != 0o600 || info.Size() != 9 {
		t.Errorf("the link was followed: %v %v", info, err)
	}
	v := m.party(t, harness.Alice, app)
	session := v.connect()
	v.configure(session, fullTunnel())
	v.bring(session, "stream")
	v.ping(t, "1", includedIPv4)
	m.daemon.Stop(t)
	check(false)
	// What is no socket is not the daemon's to remove.
	if err := os.WriteFile(paths[0], nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := m.Host.Output(t, harness.Command{Argv: m.daemon.Command()})
	if err == nil || !strings.Contains(out, fmt.Sprintf("cannot make the socket %s: something else is there", paths[0])) {
		t.Errorf("%v\n%s", err, out)
	}
	if err := os.Remove(paths[0]); err != nil {
		t.Error(err)
	}
}
