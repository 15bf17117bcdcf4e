// Package stream lies between a bus and godbus, as the transport of godbus'
// connection. godbus decodes all that comes, and any user of a bus can send any
// other a signal, or answer what it is asked. A message that the bus takes and
// godbus cannot decode ends godbus' connection; a list of descriptors ends the
// process; and a body can be twenty times as large when it is decoded. So
// godbus is given here what comes from those alone whom its user trusts.
package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

const (
	// busName is the bus itself, whose messages godbus gets all.
	busName = "org.freedesktop.DBus"

	// maxMessage is the longest that the protocol allows.
	maxMessage = 1 << 27

	// shortBody is how long a body may be that is read wanted or not.
	shortBody = 4 << 10
)

// Options say what becomes of what others send. The functions are called in the
// read loop, in the order in which messages come, and must not block.
type Options struct {
	// Call takes each method call, and owns what it is given. message is nil
	// where the call is longer than Longest; then its body was not kept, nor its
	// descriptors. nil: godbus answers calls that have no arguments, and those
	// that Trusted says it may decode; others are dropped.
	Call func(h Header, message []byte, fds []int)

	// Longest is how many bytes a call may have, its body and header fields
	// together. Call needs it.
	Longest func(h Header) int

	// Trusted says whether godbus may decode a call with arguments. nil: none.
	Trusted func(h Header) bool

	// Signal says whether godbus may decode a signal that is not from the bus
	// itself: because of its sender, or because of a signature that can be
	// trusted from anybody. nil: none.
	Signal func(h Header) bool
}

// Stream is what a connection of godbus reads and writes. Messages with
// descriptors do not pass through godbus: Send and Ask are for those. Methods
// may be called concurrently, once Open has returned.
type Stream struct {
	options Options
	conn    *net.UnixConn

	begun bool   // authentication is over
	rest  []byte // of a message that godbus has begun to read
	oob   []byte // room for what comes with a read

	write  sync.Mutex // a message goes out whole
	serial atomic.Uint32

	asking  sync.Mutex // protects below
	asked   uint32     // how many questions there were
	waiting map[uint32]question
	lost    bool
}

// New makes a stream that is not connected yet.
func New(o Options) *Stream {
	return &Stream{
		options: o, waiting: make(map[uint32]question),
		oob: make([]byte, syscall.CmsgSpace(4*253)), // as many descriptors as the kernel passes at once
	}
}

// Open connects to the first address of the list that answers, the system bus
// where it is empty, and says hello. ctx bounds Open alone. Closing the
// connection, which the caller owns, closes the stream.
func (s *Stream) Open(ctx context.Context, addresses string, opts ...godbus.ConnOption) (*godbus.Conn, error) {
	var err error
	if s.conn, err = dial(ctx, addresses); err != nil {
		return nil, err
	}
	conn, err := godbus.NewConn(s, opts...)
	if err != nil {
		return nil, errors.Join(err, s.conn.Close())
	}
	// godbus knows no context while it authenticates, and a bus that is stuck
	// never answers.
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	if err = conn.Auth(nil); err == nil {
		err = conn.Hello()
	}
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close() // of a bus that is not there
		return nil, err
	}
	return conn, nil
}

// Read gives godbus the messages that are its own.
func (s *Stream) Read(p []byte) (int, error) {
	if !s.begun {
		return s.conn.Read(p)
	}
	for len(s.rest) == 0 {
		if err := s.receive(); err != nil {
			s.lose()
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Write sends what godbus encoded: one message, or a line of the
// authentication.
func (s *Stream) Write(p []byte) (int, error) {
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

func (s *Stream) negotiate() error {
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

// SetWriteDeadline bounds how long the bus may take to accept what is sent.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.conn.SetWriteDeadline(t) }

// Close ends the connection, and with it the questions that wait for an answer.
func (s *Stream) Close() error {
	s.lose()
	return s.conn.Close()
}

// receive reads one message. It hands over a call or an answer to a question of
// ours; what is godbus' becomes rest.
func (s *Stream) receive() error {
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
	// A short body is read with the fields, a long one when it is wanted.
	rest := h.body
	if rest <= shortBody {
		rest = 0
	}
	message := append(fixed, make([]byte, h.fields+h.body-rest)...)
	if fds, err = s.fill(message[fixedHeader:], fds); err != nil {
		closeAll(fds)
		return err
	}
	h.readFields(message[fixedHeader : fixedHeader+h.fields])
	if !s.keeps(h) {
		closeAll(fds)
		fds, err = s.skip(rest)
		closeAll(fds)
		s.deliver(h, nil, nil)
		return err
	}
	message = append(message, make([]byte, rest)...)
	if fds, err = s.fill(message[len(message)-rest:], fds); err != nil {
		closeAll(fds)
		return err
	}
	s.deliver(h, message, fds)
	return nil
}

// keeps says whether the body of a message is wanted.
func (s *Stream) keeps(h Header) bool {
	switch h.Type {
	case godbus.TypeMethodCall:
		if s.options.Call != nil {
			return h.body+h.fields <= s.options.Longest(h)
		}
		return h.plain && (h.body == 0 || s.options.Trusted != nil && s.options.Trusted(h))
	case godbus.TypeMethodReply, godbus.TypeError:
		return !h.ours() || s.reads(h.replySerial)
	case godbus.TypeSignal:
		return h.Sender == busName || h.plain && s.options.Signal != nil && s.options.Signal(h)
	}
	return false // a type that there may be later
}

// deliver hands a message over, with the descriptors. message is nil where
// nothing was kept of it.
func (s *Stream) deliver(h Header, message []byte, fds []int) {
	switch {
	case h.Type == godbus.TypeMethodCall && s.options.Call != nil:
		s.options.Call(h, message, fds)
	case h.ours():
		s.answered(h.replySerial, message, fds)
	default:
		closeAll(fds) // godbus asks nothing that is answered with one
		s.rest = message
	}
}

// fill reads until p is full and appends the descriptors that come along.
func (s *Stream) fill(p []byte, fds []int) ([]int, error) {
	for len(p) > 0 {
		n, oobn, flags, _, err := s.conn.ReadMsgUnix(p, s.oob)
		got, parseErr := rights(s.oob[:oobn])
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

func (s *Stream) skip(n int) (fds []int, err error) {
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

// ErrEncode says that a message cannot be encoded, such as one with a text that is
// not UTF-8. Nothing was sent.
var ErrEncode = errors.New("cannot encode a message")

// Send encodes a message and writes it, with the descriptors among its
// arguments, of which it keeps none, and returns how many bytes it has. The numbers of replies and signals need not
// differ from those that godbus gives to calls: nobody refers to them.
// Where admit, given that number, says no, nothing is sent, which is 0 bytes.
func (s *Stream) Send(m *godbus.Message, admit func(bytes int) bool) (int, error) {
	serial := s.serial.Add(1) &^ askedSerial
	if serial == 0 {
		serial = s.serial.Add(1) &^ askedSerial
	}
	return s.sendAs(m, serial, admit)
}

func (s *Stream) sendAs(m *godbus.Message, serial uint32, admit func(bytes int) bool) (int, error) {
	if n := countFDs(m.Body); n > 0 {
		m.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(n))
	}
	var buf bytes.Buffer
	fds, err := m.EncodeToWithFDs(&buf, binary.LittleEndian)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrEncode, err)
	}
	if !admit(buf.Len()) {
		return 0, nil
	}
	binary.LittleEndian.PutUint32(buf.Bytes()[8:], serial)
	s.write.Lock()
	defer s.write.Unlock()
	if len(fds) == 0 {
		_, err = s.conn.Write(buf.Bytes())
		return buf.Len(), err
	}
	n, _, err := s.conn.WriteMsgUnix(buf.Bytes(), syscall.UnixRights(fds...), nil)
	if err == nil && n < buf.Len() {
		_, err = s.conn.Write(buf.Bytes()[n:])
	}
	return buf.Len(), err
}

// countFDs counts descriptors among the arguments; nobody here puts one any
// deeper.
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
