package fdstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// MaxPage is how many bytes a Page can hold.
const MaxPage = slotSize - headerSize

// A page is a file in memory with two slots, each with a header before what it
// holds. A write goes into the slot whose content is the older one, so the newer
// one is whole at every instant; the sum tells whether a slot is.
const (
	slotSize   = 8 << 20
	headerSize = 24
	magic      = 0x56504e31
)

// Page holds a small text that outlives the process. It belongs to one
// goroutine at a time.
type Page struct {
	file   *os.File // nil: nobody keeps it
	number uint64   // of the last text
	slot   int      // where it is
}

// Page gives the page of that name, and the text that an earlier process wrote
// last; nil where there is none that is whole. A new page is in the store when
// Page returns.
func (s *Store) Page(name string) (*Page, []byte, error) {
	for _, f := range s.Take(name) {
		p := &Page{file: f}
		if text, err := p.read(); err == nil {
			return p, text, nil
		}
		s.log.Warn("what an earlier run kept is damaged", "name", name)
		f.Close()
	}
	if !s.Active() {
		return &Page{}, nil, nil
	}
	s.Remove(name)
	f, err := newMemory(name)
	if err == nil {
		err = s.Put(name, f)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a page: %w", err)
	}
	return &Page{file: f}, nil, nil
}

func newMemory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Write replaces the text. A process that is killed meanwhile leaves the old
// one or the new one.
func (p *Page) Write(text []byte) error {
	if p.file == nil {
		return nil
	}
	if len(text) > MaxPage {
		return fmt.Errorf("cannot keep %d bytes: more than %d", len(text), MaxPage)
	}
	slot := 1 - p.slot
	if _, err := p.file.WriteAt(encode(p.number+1, text), int64(slot)*slotSize); err != nil {
		return fmt.Errorf("cannot keep the state: %w", err)
	}
	p.number, p.slot = p.number+1, slot
	return nil
}

// Close lets go of the page; the copy in the store stays.
func (p *Page) Close() error {
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}

var errDamaged = errors.New("the page is damaged")

// read finds the newest text that is whole.
func (p *Page) read() (text []byte, err error) {
	err = errDamaged
	for slot := range 2 {
		found, number, slotErr := decode(io.NewSectionReader(p.file, int64(slot)*slotSize, slotSize))
		if slotErr == nil && (err != nil || number > p.number) {
			text, err = found, nil
			p.number, p.slot = number, slot
		}
	}
	return text, err
}

// encode gives what a slot holds: magic, sum, number and length, then the text.
// The sum is of all that follows it.
func encode(number uint64, text []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(text))
	binary.NativeEndian.PutUint32(b, magic)
	binary.NativeEndian.PutUint64(b[8:], number)
	binary.NativeEndian.PutUint64(b[16:], uint64(len(text)))
	b = append(b, text...)
	binary.NativeEndian.PutUint32(b[4:], sum(b[8:]))
	return b
}

func decode(r io.Reader) (text []byte, number uint64, err error) {
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, 0, err
	}
	length := binary.NativeEndian.Uint64(header[16:])
	if binary.NativeEndian.Uint32(header) != magic || length > MaxPage {
		return nil, 0, errDamaged
	}
	b := make([]byte, headerSize+length)
	copy(b, header)
	if _, err := io.ReadFull(r, b[headerSize:]); err != nil {
		return nil, 0, err
	}
	if sum(b[8:]) != binary.NativeEndian.Uint32(header[4:]) {
		return nil, 0, errDamaged
	}
	return b[headerSize:], binary.NativeEndian.Uint64(header[8:]), nil
}

func sum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
