package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// packetOf is a block with a packet that so many are missing before.
func packetOf(data string, missing uint64) []byte {
	padded := append([]byte(data), make([]byte, (4-len(data)%4)%4)...)
	body := binary.LittleEndian.AppendUint32(make([]byte, 12), uint32(len(data)))
	body = binary.LittleEndian.AppendUint32(body, uint32(len(data)))
	body = append(body, padded...)
	body = append(body, 2, 0, 4, 0, 1, 0, 0, 0)
	body = binary.LittleEndian.AppendUint64(append(body, 4, 0, 8, 0), missing)
	return blockOf(packetBlock, append(body, 0, 0, 0, 0))
}

func blockOf(kind uint32, body []byte) []byte {
	length := uint32(len(body) + 12)
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = append(binary.LittleEndian.AppendUint32(b, length), body...)
	return binary.LittleEndian.AppendUint32(b, length)
}

// What is written are whole blocks, wherever the stream ends.
func TestRecorded(t *testing.T) {
	whole := append(append(blockOf(0x0a0d0d0a, make([]byte, 16)), packetOf("a packet", 0)...), packetOf("another", 7)...)
	for _, rest := range []string{"", "cut", string(packetOf("cut", 0)[:20])} {
		var r recorded
		var got bytes.Buffer
		err := r.copy(&got, bytes.NewReader(append(bytes.Clone(whole), rest...)))
		if (err == nil) != (rest == "") || !bytes.Equal(got.Bytes(), whole) || r != (recorded{2, 15, 7}) {
			t.Errorf("with %q at the end: %v, %+v, %x", rest, err, r, got.Bytes())
		}
	}
	var r recorded
	if err := r.copy(&bytes.Buffer{}, bytes.NewReader(make([]byte, 12))); err == nil {
		t.Error("a block of no length passed")
	}
}

// A file that others could read holds nothing that they can read.
func TestOpenPrivate(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a.pcapng")
	if err := os.WriteFile(name, []byte("an older capture"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{name, name + ".new", os.DevNull} {
		before, _ := os.Stat(name)
		f, err := openPrivate(name)
		if err != nil {
			t.Fatal(err)
		}
		after, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		switch {
		case after.Mode().IsRegular() && (after.Mode().Perm() != 0o600 || after.Size() != 0):
			t.Errorf("%s: %v, %d bytes", name, after.Mode(), after.Size())
		case !after.Mode().IsRegular() && before.Mode() != after.Mode():
			t.Errorf("%s was %v and is %v", name, before.Mode(), after.Mode())
		}
	}
}
