// Package streamtest has messages that a bus takes from any user and that
// godbus cannot decode.
package streamtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// serial is above those of what the connection sent before.
const serial = 1000

// Signals sends some to a connection of the bus, and returns when the bus has
// passed them on. Of a program that leaves them to godbus, each ends the
// connection or the process. attacker has authenticated and said hello.
func Signals(t testing.TB, attacker *net.UnixConn, to string) {
	t.Helper()
	m := func(body ...any) *godbus.Message {
		return &godbus.Message{Type: godbus.TypeSignal, Body: body, Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(to),
			godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath("/x")),
			godbus.FieldInterface:   godbus.MakeVariant("org.example.Hostile"),
			godbus.FieldMember:      godbus.MakeVariant("Hostile"),
			godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf(body...)),
		}}
	}
	send(t, attacker, truths(t, m(map[uint32]string{1: "x"})))
	send(t, attacker, withTruthsInAField(encode(t, m(true))))
	list := m([]godbus.UnixFDIndex{0})
	list.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(1))
	send(t, attacker, encode(t, list), int(os.Stdin.Fd()))
	send(t, attacker, encode(t, busCall("GetId")))
	for answered := false; !answered; {
		m, err := godbus.DecodeMessage(attacker)
		if err != nil {
			t.Fatalf("the bus does not like the attack: %v", err)
		}
		answered = m.Type == godbus.TypeMethodReply
	}
}

func busCall(member string) *godbus.Message {
	return &godbus.Message{Type: godbus.TypeMethodCall, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant("org.freedesktop.DBus"),
		godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath("/org/freedesktop/DBus")),
		godbus.FieldInterface:   godbus.MakeVariant("org.freedesktop.DBus"),
		godbus.FieldMember:      godbus.MakeVariant(member),
	}}
}

// Answer answers a call in a way that nobody expects.
func Answer(t testing.TB, attacker *net.UnixConn, call *godbus.Message) error {
	t.Helper()
	body := map[uint32]string{1: "x"}
	_, err := attacker.Write(truths(t, &godbus.Message{Type: godbus.TypeMethodReply, Body: []any{body}, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: call.Headers[godbus.FieldSender],
		godbus.FieldReplySerial: godbus.MakeVariant(call.Serial()),
		godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf(body)),
	}}))
	return err
}

func encode(t testing.TB, m *godbus.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(b.Bytes()[8:], serial)
	return b.Bytes()
}

// truths makes the keys of a dictionary truths. D-Bus has such dictionaries.
func truths(t testing.TB, m *godbus.Message) []byte {
	t.Helper()
	return bytes.Replace(encode(t, m), []byte("a{us}"), []byte("a{bs}"), 1)
}

// withTruthsInAField adds a header field that nobody knows, with such a
// dictionary.
func withTruthsInAField(message []byte) []byte {
	fields := binary.LittleEndian.Uint32(message[12:])
	end := 16 + (fields+7)&^7
	entry := []byte{1, 0, 0, 0, 1, 0, 0, 0, 'x', 0}
	more := append([]byte{200, 5, 'a', '{', 'b', 's', '}', 0, byte(len(entry)), 0, 0, 0, 0, 0, 0, 0}, entry...)
	out := append(append([]byte{}, message[:end]...), more...)
	binary.LittleEndian.PutUint32(out[12:], end-16+uint32(len(more)))
	for len(out)%8 != 0 {
		out = append(out, 0)
	}
	return append(out, message[end:]...)
}

func send(t testing.TB, attacker *net.UnixConn, message []byte, fds ...int) {
	t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := attacker.WriteMsgUnix(message, oob, nil); err != nil {
		t.Fatal(err)
	}
}

// Dial connects as the user of the test, authenticates and says hello. The
// connection is closed when the test ends.
func Dial(t testing.TB, address string) *net.UnixConn {
	t.Helper()
	path, _, _ := strings.Cut(strings.TrimPrefix(address, "unix:path="), ",")
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	hello := encode(t, busCall("Hello"))
	for _, line := range []string{
		fmt.Sprintf("\x00AUTH EXTERNAL %x\r\n", strconv.Itoa(os.Getuid())), "NEGOTIATE_UNIX_FD\r\n", "BEGIN\r\n" + string(hello),
	} {
		if _, err := conn.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}
