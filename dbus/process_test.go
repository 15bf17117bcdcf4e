package dbus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/stream"
)

// fakeBus gives a stream to a bus that answers each call but Hello with what
// answer makes of it.
func fakeBus(t *testing.T, answer func(*godbus.Message) *godbus.Message) *stream.Stream {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		bus, err := listener.AcceptUnix()
		if err != nil {
			return
		}
		defer bus.Close()
		in := bufio.NewReader(bus)
		for _, line := range []string{"REJECTED EXTERNAL", "OK 00", "AGREE_UNIX_FD"} {
			if _, err := in.ReadString('\n'); err != nil {
				return
			}
			fmt.Fprintf(bus, "%s\r\n", line)
		}
		if _, err := in.ReadString('\n'); err != nil { // BEGIN
			return
		}
		for {
			m, err := godbus.DecodeMessage(in)
			if err != nil {
				return
			}
			a := message(godbus.TypeMethodReply, "", []any{":1.1"})
			if m.Headers[godbus.FieldMember].Value() != "Hello" {
				a = answer(m)
			}
			if err := sendAnswer(bus, m, a); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	s := stream.New(stream.Options{})
	conn, err := s.Open(t.Context(), "unix:path="+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return s
}

func sendAnswer(bus *net.UnixConn, m, a *godbus.Message) error {
	a.Headers[godbus.FieldReplySerial] = godbus.MakeVariant(m.Serial())
	a.Headers[godbus.FieldSender] = godbus.MakeVariant(busName)
	if credentials, ok := a.Body[0].(dict); ok && credentials["ProcessFD"].Value() != nil {
		a.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(1))
	}
	var b bytes.Buffer
	fds, err := a.EncodeToWithFDs(&b, binary.LittleEndian)
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(b.Bytes()[8:], 1)
	_, _, err = bus.WriteMsgUnix(b.Bytes(), unix.UnixRights(fds...), nil)
	return err
}

// Where the bus has a descriptor of the process, that is the process, whatever
// its number says.
func TestProcessFD(t *testing.T) {
	t.Parallel()
	process := exec.Command("sleep", "1000")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(process.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	s := fakeBus(t, func(m *godbus.Message) *godbus.Message {
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

// FuzzCall has calls decoded that are anything: what cannot be is an error.
func FuzzCall(f *testing.F) {
	var b bytes.Buffer
	m := callOf("org.example", "/", "org.example.Interface", "Create", "a", dict{"data": godbus.MakeVariant(dict{"k": godbus.MakeVariant([]string{"v"})})})
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(bytes.Replace(b.Bytes(), []byte("a{sv}"), []byte("a(vv)"), 1))
	f.Add(bytes.Replace(b.Bytes(), []byte("a{sv}"), []byte("a{bv}"), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newCall(stream.Header{}, data, nil)
		if c.decode() == nil && c.message != nil {
			t.Error("the message is kept")
		}
		_ = c.String()
		c.close()
	})
}
