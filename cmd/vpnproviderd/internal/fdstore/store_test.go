package fdstore

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// systemd stands for the real one: it keeps what it is sent, by name.
type systemd struct {
	t    *testing.T
	conn *net.UnixConn
	kept map[string]*os.File
}

func newSystemd(t *testing.T) (*systemd, *Store) {
	t.Helper()
	address := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", address)
	return &systemd{t, conn, map[string]*os.File{}}, Open(nil, slog.New(slog.DiscardHandler))
}

// take handles n messages.
func (s *systemd) take(n int) {
	s.t.Helper()
	for range n {
		text, rights := make([]byte, 1024), make([]byte, 1024)
		if err := s.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			s.t.Fatal(err)
		}
		n, m, _, _, err := s.conn.ReadMsgUnix(text, rights)
		if err != nil {
			s.t.Fatal(err)
		}
		lines := strings.Split(string(text[:n]), "\n")
		name := strings.TrimPrefix(lines[1], "FDNAME=kept.")
		switch lines[0] {
		case "FDSTORE=1":
			if len(lines) != 3 || lines[2] != "FDPOLL=0" {
				s.t.Errorf("%q: it would be dropped when the other end closes", lines)
			}
			s.kept[name] = received(s.t, rights[:m])
		case "FDSTOREREMOVE=1":
			if f := s.kept[name]; f != nil {
				f.Close()
				delete(s.kept, name)
			}
		default:
			s.t.Errorf("message %q", lines)
		}
	}
}

func received(t *testing.T, rights []byte) *os.File {
	t.Helper()
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	return os.NewFile(uintptr(fds[0]), "kept")
}

// next is the store of the next process.
func (s *systemd) next(store *Store) *Store {
	s.t.Helper()
	passed := map[string][]*os.File{"other": {os.Stdin}}
	for name, f := range s.kept {
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			s.t.Fatal(err)
		}
		passed["kept."+name] = []*os.File{os.NewFile(uintptr(fd), name)}
	}
	again := Open(passed, store.log)
	if len(passed) != 1 {
		s.t.Errorf("what is others' is %v", passed)
	}
	return again
}

func TestPage(t *testing.T) {
	s, store := newSystemd(t)
	p, text, err := store.Page("state")
	if err != nil || text != nil {
		t.Fatalf("a new page has %q, %v", text, err)
	}
	s.take(2)
	for i := range 5 { // in both slots, and shorter than what was there
		want := bytes.Repeat([]byte{byte('a' + i)}, 100-10*i)
		for range i%2 + 1 {
			if err := p.Write(want); err != nil {
				t.Fatal(err)
			}
		}
		again, got, err := s.next(store).Page("state")
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
		p = again
	}
	if err := p.Write(make([]byte, MaxPage+1)); err == nil {
		t.Error("a text that is too long is kept")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestTornPage: a process that is killed while it writes, at any byte, leaves
// what it had written before.
func TestTornPage(t *testing.T) {
	s, store := newSystemd(t)
	p, _, err := store.Page("state")
	if err != nil {
		t.Fatal(err)
	}
	s.take(2)
	for _, text := range []string{"one", "two"} {
		if err := p.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	whole := encode(3, []byte("three"))
	for n := range len(whole) {
		if _, err := p.file.WriteAt(whole[:n], int64(1-p.slot)*slotSize); err != nil {
			t.Fatal(err)
		}
		if _, text, err := s.next(store).Page("state"); err != nil || string(text) != "two" {
			t.Fatalf("after %d bytes: %q, %v", n, text, err)
		}
	}
}

// TestDamagedPage: what cannot be read is taken out of the store.
func TestDamagedPage(t *testing.T) {
	s, store := newSystemd(t)
	p, _, err := store.Page("state")
	if err != nil {
		t.Fatal(err)
	}
	s.take(2)
	if _, err := p.file.WriteAt([]byte("nonsense"), 0); err != nil {
		t.Fatal(err)
	}
	fresh, text, err := s.next(store).Page("state")
	if err != nil || text != nil {
		t.Errorf("%q, %v", text, err)
	}
	s.take(2)
	if err := fresh.Write([]byte("new")); err != nil {
		t.Error(err)
	}
	if _, text, err := s.next(store).Page("state"); err != nil || string(text) != "new" {
		t.Errorf("%q, %v", text, err)
	}
}

func FuzzPage(f *testing.F) {
	f.Add(encode(1, []byte("text")), []byte{})
	f.Add(encode(1, []byte("text")), encode(2, nil))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		file, err := newMemory("fuzz")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		for slot, b := range [][]byte{first, second} {
			if _, err := file.WriteAt(b, int64(slot)*slotSize); err != nil {
				t.Fatal(err)
			}
		}
		p := &Page{file: file}
		if _, err := p.read(); err != nil {
			return
		}
		want := fmt.Append(nil, len(first))
		if err := p.Write(want); err != nil {
			t.Fatal(err)
		}
		if got, err := (&Page{file: file}).read(); p.number != 0 && (err != nil || !bytes.Equal(got, want)) {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestStore(t *testing.T) {
	s, store := newSystemd(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := store.Put("pipe", w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	s.take(1)
	again := s.next(store)
	files := again.Take("pipe")
	if len(files) != 1 || len(again.Take("pipe")) != 0 {
		t.Fatalf("%d files", len(files))
	}
	if _, err := files[0].WriteString("x"); err != nil {
		t.Error(err)
	}
	files[0].Close()
	s.next(store).Discard()
	s.take(1)
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("a descriptor that was given up is open")
	}
	if err := store.Put("closed", w); err == nil {
		t.Error("a closed file is kept")
	}
}

// TestNobodyKeeps: without systemd nothing is kept, and nothing fails.
func TestNobodyKeeps(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	store := Open(nil, slog.New(slog.DiscardHandler))
	p, text, err := store.Page("state")
	if err != nil || text != nil || store.Active() {
		t.Errorf("%q, %v", text, err)
	}
	if err := p.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := store.Put("file", os.Stdin); err != nil {
		t.Error(err)
	}
	store.Remove("file")
}

// TestSystemdIsGone: a message that cannot be sent is an error.
func TestSystemdIsGone(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	store := Open(nil, slog.New(slog.DiscardHandler))
	if _, _, err := store.Page("state"); err == nil {
		t.Error("no error")
	}
}
