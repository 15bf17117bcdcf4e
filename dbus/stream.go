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
	// fixedHeader is what a message begins with: byte order, type, flags,
	// version, body length, serial and the length of the header fields.
	fixedHeader = 16

	// maxMessage is the longest that the protocol allows.
	maxMessage = 1 << 27

	// maxBody is the longest body of a call that is served.
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
	header := make([]byte, fixedHeader)
	fds, err := s.fill(header, nil)
	if err != nil {
		closeAll(fds)
		return err
	}
	order, body, fields, err := lengths(header)
	if err != nil {
		closeAll(fds)
		return err
	}
	message := append(header, make([]byte, fields)...)
	if fds, err = s.fill(message[fixedHeader:], fds); err != nil {
		closeAll(fds)
		return err
	}
	isCall := godbus.Type(header[1]) == godbus.TypeMethodCall
	if isCall && body > maxBody {
		closeAll(fds)
		fds, err = s.skip(body)
		closeAll(fds)
		s.onCall(unreadable(message, order, errTooLong))
		return err
	}
	message = append(message, make([]byte, body)...)
	if fds, err = s.fill(message[fixedHeader+fields:], fds); err != nil {
		closeAll(fds)
		return err
	}
	if !isCall {
		closeAll(fds) // nothing that we call answers with one
		s.rest = message
		return nil
	}
	s.onCall(decode(message, order, fds))
	return nil
}

// lengths reads the fixed header: the length of the body, and that of the
// header fields with their padding.
func lengths(header []byte) (order binary.ByteOrder, body, fields int, err error) {
	switch header[0] {
	case 'l':
		order = binary.LittleEndian
	case 'B':
		order = binary.BigEndian
	default:
		return nil, 0, 0, fmt.Errorf("the bus sent a message of byte order %q", header[0])
	}
	b, f := uint64(order.Uint32(header[4:])), (uint64(order.Uint32(header[12:]))+7)&^7
	if b+f+fixedHeader > maxMessage {
		return nil, 0, 0, fmt.Errorf("the bus sent a message of %d bytes", b+f+fixedHeader)
	}
	return order, int(b), int(f), nil
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
	if n := countFDs(m.Body); n > 0 {
		m.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(n))
	}
	var buf bytes.Buffer
	fds, err := m.EncodeToWithFDs(&buf, binary.LittleEndian)
	if err != nil {
		return err
	}
	serial := s.serial.Add(1)
	if serial == 0 {
		serial = s.serial.Add(1)
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
