package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// pair is a stream after the authentication, and the bus' end of it.
func pair(t testing.TB, o Options) (*Stream, *net.UnixConn) {
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
	s := New(o)
	s.conn, s.begun = ends[0], true
	return s, ends[1]
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

func message(kind godbus.Type, to, iface, member string, body ...any) *godbus.Message {
	m := &godbus.Message{Type: kind, Body: body, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant(to),
	}}
	if len(body) > 0 {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(body...))
	}
	if member != "" {
		m.Headers[godbus.FieldPath] = godbus.MakeVariant(godbus.ObjectPath("/x"))
		m.Headers[godbus.FieldMember] = godbus.MakeVariant(member)
	}
	if iface != "" {
		m.Headers[godbus.FieldInterface] = godbus.MakeVariant(iface)
	}
	return m
}

func method(iface, member string, body ...any) *godbus.Message {
	return message(godbus.TypeMethodCall, "org.example.Service", iface, member, body...)
}

func signal(member string, body ...any) *godbus.Message {
	return message(godbus.TypeSignal, ":1.1", "org.example.Interface", member, body...)
}

// kept collects calls.
type kept struct{ calls []string }

func (k *kept) call(h Header, message []byte, fds []int) {
	closeAll(fds)
	k.calls = append(k.calls, fmt.Sprintf("%s %d %s %s %s %s %d", h.Sender, h.Serial, h.Path, h.Interface, h.Member, h.Signature, len(message)))
}

// all writes messages, byte by byte, and gives what godbus reads of them.
func all(t *testing.T, o Options, messages ...[]byte) []byte {
	t.Helper()
	s, bus := pair(t, o)
	go func() {
		for _, b := range slices.Concat(messages...) {
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
	return rest
}

// Calls come out of the stream, in order and whole, however the bytes arrive;
// what the bus itself says goes on to godbus as it is.
func TestStream(t *testing.T) {
	t.Parallel()
	create := encoded(t, method("org.example.Interface", "Create", "a", "b"), ":1.5")
	quiet := encoded(t, method("", "Ping"), ":1.6")
	long := encoded(t, method("", "Long", strings.Repeat("x", 1000)), ":1.6")
	news := encoded(t, signal("NameLost", "x"), busName)
	reply := message(godbus.TypeMethodReply, ":1.1", "", "")
	reply.Headers[godbus.FieldReplySerial] = godbus.MakeVariant(uint32(3))
	answer := encoded(t, reply, ":1.9") // to what godbus asked
	var k kept
	rest := all(t, Options{Call: k.call, Longest: func(Header) int { return 1000 }}, create, news, quiet, long, answer, news)
	if want := slices.Concat(news, answer, news); !bytes.Equal(rest, want) {
		t.Errorf("godbus gets\n%q\nwant\n%q", rest, want)
	}
	want := []string{
		fmt.Sprintf(":1.5 7 /x org.example.Interface Create ss %d", len(create)),
		fmt.Sprintf(":1.6 7 /x  Ping  %d", len(quiet)),
		":1.6 7 /x  Long s 0",
	}
	if diff := cmp.Diff(want, k.calls); diff != "" {
		t.Errorf("the calls (-want +got):\n%s", diff)
	}
}

// Of signals from others, godbus gets what was asked for and nothing else: it
// ends its connection over a dictionary of truths.
func TestStrangers(t *testing.T) {
	t.Parallel()
	wanted := encoded(t, signal("Wanted", true), ":1.5")
	truths := encoded(t, signal("Wanted", map[string]string{"k": "v"}), ":1.5")
	truths = bytes.Replace(truths, []byte("a{ss}"), []byte("a{bs}"), 1)
	odd := signal("Wanted", true)
	odd.Headers[200] = godbus.MakeVariant("x") // godbus knows no such field
	later := signal("Wanted", true)
	later.Type = 5
	hello := encoded(t, method("", "Ping"), ":1.5")
	options := Options{Signal: func(h Header) bool { return h.Member == "Wanted" && h.Signature == "b" }}
	rest := all(t, options,
		wanted, truths, encodedAs(t, odd, ":1.5"), encodedAs(t, later, ":1.5"), encoded(t, signal("Other", true), ":1.5"), hello,
		encoded(t, method("", "Do", "x"), ":1.5"), wanted)
	if want := slices.Concat(wanted, hello, wanted); !bytes.Equal(rest, want) {
		t.Errorf("godbus gets\n%q\nwant\n%q", rest, want)
	}
	if rest := all(t, Options{}, wanted, hello); !bytes.Equal(rest, hello) {
		t.Errorf("without a wish godbus gets\n%q\nwant\n%q", rest, hello)
	}
}

// encodedAs is encoded for what godbus would not encode.
func encodedAs(t *testing.T, m *godbus.Message, sender string) []byte {
	t.Helper()
	kind := m.Type
	m.Type = godbus.TypeSignal
	_, odd := m.Headers[200]
	if odd {
		delete(m.Headers, 200)
		m.Headers[godbus.FieldErrorName] = godbus.MakeVariant("org.example.Odd")
	}
	b := encoded(t, m, sender)
	b[1] = byte(kind)
	if odd {
		at := bytes.Index(b, []byte{byte(godbus.FieldErrorName), 1, 's', 0})
		b[at] = 200
	}
	return b
}

// answering is the bus' end: it answers each call with what answer makes of it.
func answering(t *testing.T, bus *net.UnixConn, answer func(*godbus.Message) *godbus.Message) {
	t.Helper()
	go func() {
		for {
			m, err := godbus.DecodeMessage(bus)
			if err != nil {
				return
			}
			a := answer(m)
			a.Headers[godbus.FieldReplySerial] = godbus.MakeVariant(m.Serial())
			if n := countFDs(a.Body); n > 0 {
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

// An answer that comes too late leaves no descriptor.
func TestLateAnswer(t *testing.T) {
	s, bus := pair(t, Options{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd := godbus.UnixFD(w.Fd())
	proceed, done := make(chan struct{}), make(chan struct{})
	answering(t, bus, func(*godbus.Message) *godbus.Message {
		<-proceed
		return message(godbus.TypeMethodReply, "", "", "", fd)
	})
	go func() {
		defer close(done)
		io.Copy(io.Discard, s)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, _, err := s.Ask(ctx, method("", "Give")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want that the time is over", err)
	}
	close(proceed)
	// The second answer comes behind the first; and nobody looks at the third.
	_, fds, err := s.Ask(t.Context(), method("", "Give"))
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	closeAll(fds)
	await, err := s.Ping(method("", "Give"))
	if err != nil {
		t.Fatal(err)
	}
	await(t.Context())
	w.Close()
	bus.Close()
	<-done
	// With every copy of the other end closed, the pipe is at its end.
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the pipe has a writer: %d, %v", n, err)
	}
}

// Whatever a stranger answers to a ping is an answer, and is not decoded.
func TestPing(t *testing.T) {
	t.Parallel()
	s, bus := pair(t, Options{})
	answering(t, bus, func(*godbus.Message) *godbus.Message {
		m := message(godbus.TypeMethodReply, "", "", "", "x")
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.ParseSignatureMust("g")) // which "x" is no
		return m
	})
	done := make(chan []byte)
	go func() {
		rest, _ := io.ReadAll(s)
		done <- rest
	}()
	for range 3 {
		await, err := s.Ping(method("", "Ping"))
		if err != nil {
			t.Fatal(err)
		}
		await(t.Context())
	}
	// The end of the connection is an answer too, and there are no questions
	// after it.
	late, err := s.Ping(method("", "Ping"))
	if err != nil {
		t.Fatal(err)
	}
	bus.Close()
	if rest := <-done; len(rest) != 0 {
		t.Errorf("godbus gets %q", rest)
	}
	late(t.Context())
	if _, _, err := s.Ask(t.Context(), method("", "Give")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a question to nobody: %v", err)
	}
}

// FuzzStream gives the stream whatever a bus could send, and more. It must
// neither panic nor hang, and what it keeps of a call is the whole of it.
func FuzzStream(f *testing.F) {
	create := encoded(f, method("org.example.Interface", "Create", "a", map[string]godbus.Variant{"k": godbus.MakeVariant([]string{"v"})}), ":1.5")
	news := encoded(f, signal("NameOwnerChanged", ":1.5", ":1.5", ""), busName)
	reply := message(godbus.TypeMethodReply, ":1.1", "", "", map[string]godbus.Variant{})
	reply.Headers[godbus.FieldReplySerial] = godbus.MakeVariant(uint32(askedSerial | 1))
	f.Add(create)
	f.Add(append(append([]byte{}, news...), create...))
	f.Add(encoded(f, reply, busName))
	f.Add(encoded(f, signal("Other", true), ":1.5"))
	f.Add(bytes.Replace(create, []byte("a{sv}"), []byte("a(vv)"), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		for at := 0; at+fixedHeader <= len(data); at++ {
			// Room for a whole message is made at once: the bus has checked the
			// lengths.
			if h, err := readFixed(data[at:]); err == nil && h.body+h.fields > 1<<20 {
				t.Skip()
			}
		}
		s, bus := pair(t, Options{Longest: func(Header) int { return 4096 }, Call: func(h Header, message []byte, fds []int) {
			if long := h.body+h.fields > 4096; long != (message == nil) || !long && len(message) != fixedHeader+h.fields+h.body {
				t.Errorf("%d bytes of a call of %d and %d", len(message), h.fields, h.body)
			}
			closeAll(fds)
		}})
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

// A text that cannot be sent is no reason to give up the bus.
func TestSendWhatCannotBeEncoded(t *testing.T) {
	s, bus := pair(t, Options{})
	if n, err := s.Send(message(godbus.TypeSignal, ":1.5", "com.example", "Told", "not\xfftext"), anyLength); n != 0 || !errors.Is(err, ErrEncode) {
		t.Errorf("%d bytes, %v", n, err)
	}
	n, err := s.Send(message(godbus.TypeSignal, ":1.5", "com.example", "Told", "text"), anyLength)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadFull(bus, make([]byte, n)); err != nil {
		t.Errorf("%d bytes came, %v", got, err)
	}
}
