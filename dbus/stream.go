package dbus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	godbus "github.com/godbus/dbus/v5"
)

const (
	// maxMessage is the longest that the protocol allows.
	maxMessage = 1 << 27

	// maxBody is the longest body of a call that is served, and together with
	// its header fields too: paths and fields that nobody knows can be long.
	maxBody = 1 << 20
)

// stream lies between the bus and godbus, as the transport of its connection.
// It takes method calls out of what comes in and gives them, decoded and in
// order, to the server; replies and signals go on to godbus. What the server
// answers goes out here too.
//
// godbus' own transport would start a goroutine for every call, lose track of
// descriptors that a message carries without referring to them, and give the
// connection up over a message that it cannot decode; any user of the bus
// could use each of these to bring the service down.
type stream struct {
	conn   *net.UnixConn
	onCall func(*call) // in the read loop: must not block

	begun bool   // authentication is over
	rest  []byte // of a message that godbus has begun to read

	write  sync.Mutex // a message goes out whole
	serial atomic.Uint32

	asking  sync.Mutex // protects below
	asked   uint32     // how many questions there were
	waiting map[uint32]chan<- answer
}

// Read gives godbus the messages that are its own.
func (s *stream) Read(p []byte) (int, error) {
	if !s.begun {
		return s.conn.Read(p)
	}
	for len(s.rest) == 0 {
		if err := s.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Write sends what godbus encoded: one message, or a line of the
// authentication.
func (s *stream) Write(p []byte) (int, error) {
	if !s.begun && bytes.Equal(p, []byte("BEGIN\r\n")) {
		// godbus does not know that this transport can carry descriptors.
		if err := s.negotiate(); err != nil {
			return 0, err
		}
		s.begun = true
	}
	s.write.Lock()
	defer s.write.Unlock()
	return s.conn.Write(p)
}

func (s *stream) negotiate() error {
	if _, err := s.conn.Write([]byte("NEGOTIATE_UNIX_FD\r\n")); err != nil {
		return err
	}
	var line []byte
	for !bytes.HasSuffix(line, []byte("\r\n")) {
		var b [1]byte
		if _, err := io.ReadFull(s.conn, b[:]); err != nil {
			return err
		}
		if line = append(line, b[0]); len(line) > 1024 {
			return errors.New("the bus sent a line without an end")
		}
	}
	if !bytes.Equal(line, []byte("AGREE_UNIX_FD\r\n")) {
		return fmt.Errorf("the bus passes no descriptors: %q", bytes.TrimSpace(line))
	}
	return nil
}

// Close ends the connection.
func (s *stream) Close() error { return s.conn.Close() }

// receive reads one message: a call is handed over, another becomes rest.
func (s *stream) receive() error {
	fixed := make([]byte, fixedHeader)
	fds, err := s.fill(fixed, nil)
	if err != nil {
		closeAll(fds)
		return err
	}
	h, err := readFixed(fixed)
	if err != nil {
		closeAll(fds)
		return err
	}
	message := append(fixed, make([]byte, h.fields)...)
	if fds, err = s.fill(message[fixedHeader:], fds); err != nil {
		closeAll(fds)
		return err
	}
	h.readFields(message[fixedHeader:])
	isCall := h.kind == godbus.TypeMethodCall
	if isCall && h.body+h.fields > maxBody {
		closeAll(fds)
		fds, err = s.skip(h.body)
		closeAll(fds)
		h.path = "" // it can be what is long
		long := newCall(h, nil, nil)
		long.err = errTooLong
		s.onCall(long)
		return err
	}
	message = append(message, make([]byte, h.body)...)
	if fds, err = s.fill(message[fixedHeader+h.fields:], fds); err != nil {
		closeAll(fds)
		return err
	}
	switch {
	case isCall:
		s.onCall(newCall(h, message, fds))
	case h.replySerial&askedSerial != 0:
		s.answered(h.replySerial, message, fds)
	default:
		closeAll(fds) // godbus asks nothing that is answered with one
		s.rest = message
	}
	return nil
}

// fill reads until p is full and appends the descriptors that come along.
func (s *stream) fill(p []byte, fds []int) ([]int, error) {
	oob := make([]byte, syscall.CmsgSpace(4*253)) // as many as the kernel passes at once
	for len(p) > 0 {
		n, oobn, flags, _, err := s.conn.ReadMsgUnix(p, oob)
		got, parseErr := rights(oob[:oobn])
		fds = append(fds, got...)
		switch {
		case err != nil:
			return fds, err
		case n == 0:
			return fds, io.ErrUnexpectedEOF
		case parseErr != nil:
			return fds, parseErr
		case flags&syscall.MSG_CTRUNC != 0:
			return fds, errors.New("the bus passed more descriptors than the kernel allows")
		}
		p = p[n:]
	}
	return fds, nil
}

func (s *stream) skip(n int) (fds []int, err error) {
	chunk := make([]byte, min(n, 64<<10))
	for n > 0 && err == nil {
		part := chunk[:min(n, len(chunk))]
		fds, err = s.fill(part, fds)
		n -= len(part)
	}
	return fds, err
}

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("cannot parse a control message: %w", err)
	}
	var fds []int
	for _, m := range messages {
		got, err := syscall.ParseUnixRights(&m)
		if err != nil {
			continue // not descriptors
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// send encodes a message and writes it, with the descriptors in its body. The
// numbers of replies and signals need not differ from those that godbus gives
// to calls: nobody refers to them.
func (s *stream) send(m *godbus.Message) error {
	serial := s.serial.Add(1) &^ askedSerial
	if serial == 0 {
		serial = s.serial.Add(1) &^ askedSerial
	}
	return s.sendAs(m, serial)
}

func (s *stream) sendAs(m *godbus.Message, serial uint32) error {
	if n := countFDs(m.Body); n > 0 {
		m.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(n))
	}
	var buf bytes.Buffer
	fds, err := m.EncodeToWithFDs(&buf, binary.LittleEndian)
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(buf.Bytes()[8:], serial)
	s.write.Lock()
	defer s.write.Unlock()
	if len(fds) == 0 {
		_, err = s.conn.Write(buf.Bytes())
		return err
	}
	n, _, err := s.conn.WriteMsgUnix(buf.Bytes(), syscall.UnixRights(fds...), nil)
	if err == nil && n < buf.Len() {
		_, err = s.conn.Write(buf.Bytes()[n:])
	}
	return err
}

// countFDs counts descriptors among the arguments; the service never puts one
// any deeper.
func countFDs(body []any) (n int) {
	for _, v := range body {
		if _, ok := v.(godbus.UnixFD); ok {
			n++
		}
	}
	return n
}

func closeAll(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}
