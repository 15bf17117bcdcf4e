package dbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// streamPair is a stream after the authentication, and the bus' end of it.
func streamPair(t testing.TB, onCall func(*call)) (*stream, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		ends[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { conn.Close() })
	}
	return &stream{conn: ends[0], onCall: onCall, begun: true}, ends[1]
}

// encoded is a message as a bus sends it.
func encoded(t testing.TB, m *godbus.Message, sender string) []byte {
	t.Helper()
	m.Headers[godbus.FieldSender] = godbus.MakeVariant(sender)
	var b bytes.Buffer
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(b.Bytes()[8:], 7)
	return b.Bytes()
}

func method(iface, member string, body ...any) *godbus.Message {
	m := message(godbus.TypeMethodCall, wire.BusName, body)
	m.Headers[godbus.FieldPath] = godbus.MakeVariant(godbus.ObjectPath(wire.RootPath))
	m.Headers[godbus.FieldInterface] = godbus.MakeVariant(iface)
	m.Headers[godbus.FieldMember] = godbus.MakeVariant(member)
	return m
}

// Calls come out of the stream, in order and whole, however the bytes arrive;
// the rest goes on to godbus as it is.
func TestStream(t *testing.T) {
	t.Parallel()
	var got []string
	s, bus := streamPair(t, func(c *call) {
		err := errors.Join(c.err, c.decode())
		got = append(got, fmt.Sprintf("%s %d %s %s %s %s %v %v %v", c.sender, c.serial, c.path, c.iface, c.member, c.signature, c.noReply, c.body, err))
	})
	create := method(wire.ManagerInterface, "CreateConfig", "a", "b", dict{"x": godbus.MakeVariant(uint32(1))})
	quiet := method("", "Ping")
	delete(quiet.Headers, godbus.FieldInterface)
	quiet.Flags = godbus.FlagNoReplyExpected
	news := encoded(t, signal(":1.1", wire.RootPath, busName, "NameLost", "x"), busName)
	var all []byte
	for _, m := range [][]byte{encoded(t, create, ":1.5"), news, encoded(t, quiet, ":1.6"), news} {
		all = append(all, m...)
	}
	go func() {
		for _, b := range all {
			if _, err := bus.Write([]byte{b}); err != nil {
				return
			}
		}
		bus.Close()
	}()
	rest, err := io.ReadAll(s)
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if want := append(append([]byte{}, news...), news...); !bytes.Equal(rest, want) {
		t.Errorf("godbus gets\n%q\nwant\n%q", rest, want)
	}
	want := []string{
		`:1.5 7 /org/vpnprovider1 org.vpnprovider1.Manager CreateConfig ssa{sv} false [a b map[x:@u 1]] <nil>`,
		`:1.6 7 /org/vpnprovider1  Ping  true [] <nil>`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the calls\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// credentialsBus answers each question with what answer makes of it.
func credentialsBus(t *testing.T, bus *net.UnixConn, answer func(*godbus.Message) *godbus.Message) {
	t.Helper()
	go func() {
		for {
			m, err := godbus.DecodeMessage(bus)
			if err != nil {
				return
			}
			a := answer(m)
			a.Headers[godbus.FieldReplySerial] = godbus.MakeVariant(m.Serial())
			if n := countFDs([]any{first(a)}); n > 0 {
				a.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(n))
			}
			var b bytes.Buffer
			fds, err := a.EncodeToWithFDs(&b, binary.LittleEndian)
			if err != nil {
				t.Error(err)
				return
			}
			binary.LittleEndian.PutUint32(b.Bytes()[8:], 1)
			if _, _, err := bus.WriteMsgUnix(b.Bytes(), unix.UnixRights(fds...), nil); err != nil {
				return
			}
		}
	}()
}

// first is the descriptor in credentials.
func first(m *godbus.Message) any {
	if credentials, ok := m.Body[0].(dict); ok {
		return credentials["ProcessFD"].Value()
	}
	return nil
}

// Where the bus has a descriptor of the process, that is the process, whatever
// its number says.
func TestProcessFD(t *testing.T) {
	t.Parallel()
	s, bus := streamPair(t, func(*call) {})
	go io.Copy(io.Discard, s)
	process := exec.Command("sleep", "1000")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(process.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	credentialsBus(t, bus, func(m *godbus.Message) *godbus.Message {
		if m.Body[0] == ":1.404" {
			a := message(godbus.TypeError, "", []any{"no such name"})
			a.Headers[godbus.FieldErrorName] = godbus.MakeVariant("org.freedesktop.DBus.Error.NameHasNoOwner")
			return a
		}
		return message(godbus.TypeMethodReply, "", []any{dict{
			"UnixUserID": godbus.MakeVariant(uint32(1000)), "ProcessID": godbus.MakeVariant(uint32(1)), "ProcessFD": godbus.MakeVariant(godbus.UnixFD(fd)),
		}})
	})
	server := &Server{stream: s}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	file, err := server.openProcess(&peer{name: ":1.5", ctx: ctx})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ended := make(chan error, 1)
	go func() { ended <- awaitEnd(file) }()
	select {
	case err := <-ended:
		t.Fatalf("it has ended: %v", err)
	case <-time.After(20 * time.Millisecond): // nothing to wait for
	}
	process.Process.Kill()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	process.Wait()

	if _, err := server.openProcess(&peer{name: ":1.404", ctx: ctx}); err == nil || !strings.Contains(err.Error(), "no such name") {
		t.Errorf("of a name that is not there: %v", err)
	}
}

// An answer that comes too late leaves no descriptor.
func TestLateAnswer(t *testing.T) {
	s, bus := streamPair(t, func(*call) {})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd := godbus.UnixFD(w.Fd())
	proceed, done := make(chan struct{}), make(chan struct{})
	credentialsBus(t, bus, func(*godbus.Message) *godbus.Message {
		<-proceed
		return message(godbus.TypeMethodReply, "", []any{dict{"ProcessFD": godbus.MakeVariant(fd)}})
	})
	go func() {
		defer close(done)
		io.Copy(io.Discard, s)
	}()
	server := &Server{stream: s}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := server.openProcess(&peer{name: ":1.5", ctx: ctx}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want that the time is over", err)
	}
	close(proceed)
	// The second answer comes behind the first.
	file, err := server.openProcess(&peer{name: ":1.6", ctx: t.Context()})
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	w.Close()
	bus.Close()
	<-done
	// With every copy of the other end closed, the pipe is at its end.
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the pipe has a writer: %d, %v", n, err)
	}
}

// FuzzStream gives the stream whatever a bus could send, and more. It must
// neither panic nor hang, and what it takes for a call must be decodable or an
// error.
func FuzzStream(f *testing.F) {
	create := encoded(f, method(wire.ManagerInterface, "CreateConfig", "a", "b", dict{"data": godbus.MakeVariant(dict{"k": godbus.MakeVariant([]string{"v"})})}), ":1.5")
	news := encoded(f, signal(":1.1", wire.RootPath, busName, "NameOwnerChanged", ":1.5", ":1.5", ""), busName)
	reply := message(godbus.TypeMethodReply, ":1.1", []any{dict{}})
	reply.Headers[godbus.FieldReplySerial] = godbus.MakeVariant(uint32(askedSerial | 1))
	f.Add(create)
	f.Add(append(append([]byte{}, news...), create...))
	f.Add(encoded(f, reply, busName))
	f.Add(bytes.Replace(create, []byte("a{sv}"), []byte("a(vv)"), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		for at := 0; at+fixedHeader <= len(data); at++ {
			// Room for a whole message is made at once: the bus has checked the
			// lengths.
			if h, err := readFixed(data[at:]); err == nil && h.body+h.fields > 1<<20 {
				t.Skip()
			}
		}
		s, bus := streamPair(t, func(c *call) {
			if c.err == nil && c.decode() == nil && c.signature != "" && len(c.body) == 0 {
				t.Errorf("a call with %q has no arguments", c.signature)
			}
			_ = c.String()
			c.close()
		})
		if len(data) > 100<<10 {
			t.Skip() // more than the socket takes at once
		}
		if _, err := bus.Write(data); err != nil {
			t.Fatal(err)
		}
		bus.Close()
		io.Copy(io.Discard, s)
		s.conn.Close()
	})
}
