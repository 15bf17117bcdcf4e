package stream

import (
	"bytes"
	"context"
	"errors"
	"net"

	godbus "github.com/godbus/dbus/v5"
)

// askedSerial marks the numbers of calls that Ask and Ping made. godbus counts
// its own up from 1 and uses the lowest free one.
const askedSerial = 1 << 31

var errUnreadable = errors.New("the answer cannot be decoded")

// question is a call of ours that is not answered yet.
type question struct {
	came chan<- answer // with room for one
	read bool          // the answer is of interest
}

// answer is what came: nothing where it cannot be decoded, or is not read.
type answer struct {
	message *godbus.Message
	fds     []int
}

// Ask makes a call, with the descriptors among its arguments, and waits for the
// answer, whose descriptors the caller of this owns. For calls and answers
// without any there is godbus. It is for those whose answers can be trusted.
func (s *Stream) Ask(ctx context.Context, m *godbus.Message) (body []any, fds []int, err error) {
	serial, came, err := s.ask(m, true)
	if err != nil {
		return nil, nil, err
	}
	select {
	case a, ok := <-came:
		switch {
		case !ok:
			return nil, nil, net.ErrClosed
		case a.message == nil:
			return nil, nil, errUnreadable
		case a.message.Type == godbus.TypeError:
			closeAll(a.fds)
			name, _ := a.message.Headers[godbus.FieldErrorName].Value().(string)
			return nil, nil, godbus.Error{Name: name, Body: a.message.Body}
		}
		return a.message.Body, a.fds, nil
	case <-ctx.Done():
		s.forget(serial, came)
		return nil, nil, ctx.Err()
	}
}

// Ping makes a call to which anybody may answer anything: nothing of that is
// read. The call is sent when Ping returns; await returns when it is answered,
// when ctx ends or when the stream is closed.
func (s *Stream) Ping(m *godbus.Message) (await func(ctx context.Context), err error) {
	serial, came, err := s.ask(m, false)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		select {
		case <-came:
		case <-ctx.Done():
			s.forget(serial, came)
		}
	}, nil
}

// ask sends a question. came is closed where the stream is lost.
func (s *Stream) ask(m *godbus.Message, read bool) (serial uint32, came chan answer, err error) {
	came = make(chan answer, 1)
	s.asking.Lock()
	if s.lost {
		s.asking.Unlock()
		return 0, nil, net.ErrClosed
	}
	s.asked++
	serial = s.asked | askedSerial
	s.waiting[serial] = question{came, read}
	s.asking.Unlock()
	if _, err := s.sendAs(m, serial, anyLength); err != nil {
		s.forget(serial, came)
		return 0, nil, err
	}
	return serial, came, nil
}

// reads says whether the answer with that number is of interest to anybody.
func (s *Stream) reads(serial uint32) bool {
	s.asking.Lock()
	defer s.asking.Unlock()
	return s.waiting[serial].read
}

func anyLength(int) bool { return true }

// forget gives up on an answer, which may have come meanwhile.
func (s *Stream) forget(serial uint32, came <-chan answer) {
	s.asking.Lock()
	defer s.asking.Unlock()
	delete(s.waiting, serial)
	select {
	case a := <-came:
		closeAll(a.fds)
	default:
	}
}

// answered hands an answer over. It owns fds.
func (s *Stream) answered(serial uint32, message []byte, fds []int) {
	var m *godbus.Message
	if message != nil {
		var err error
		if m, err = decodeAnswer(message, fds); err != nil {
			closeAll(fds)
			m, fds = nil, nil
		}
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	q, ok := s.waiting[serial]
	if !ok { // nobody waits any more
		closeAll(fds)
		return
	}
	delete(s.waiting, serial)
	q.came <- answer{m, fds}
}

// lose ends all questions: nobody will answer them.
func (s *Stream) lose() {
	s.asking.Lock()
	defer s.asking.Unlock()
	s.lost = true
	for serial, q := range s.waiting {
		delete(s.waiting, serial)
		close(q.came)
	}
}

func decodeAnswer(message []byte, fds []int) (m *godbus.Message, err error) {
	defer func() {
		if recover() != nil {
			err = errUnreadable
		}
	}()
	return godbus.DecodeMessageWithFDs(bytes.NewReader(message), fds)
}
