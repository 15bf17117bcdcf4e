package dbus

import (
	"bytes"
	"context"
	"errors"

	godbus "github.com/godbus/dbus/v5"
)

// askedSerial marks the numbers of calls that ask made. godbus counts its own
// up from 1 and uses the lowest free one.
const askedSerial = 1 << 31

// answer is what came for a call of ask.
type answer struct {
	message *godbus.Message
	fds     []int
}

// ask makes a call and waits for the answer, whose descriptors the caller of
// this owns. It is for answers that carry some, which godbus would not see:
// for the rest there is godbus.
func (s *stream) ask(ctx context.Context, m *godbus.Message) (body []any, fds []int, err error) {
	serial, came := s.expect()
	if err := s.sendAs(m, serial); err != nil {
		s.forget(serial, came)
		return nil, nil, err
	}
	select {
	case a := <-came:
		if a.message == nil {
			return nil, nil, errUnreadable
		}
		if a.message.Type == godbus.TypeError {
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

func (s *stream) expect() (uint32, chan answer) {
	came := make(chan answer, 1)
	s.asking.Lock()
	defer s.asking.Unlock()
	s.asked++
	serial := s.asked | askedSerial
	if s.waiting == nil {
		s.waiting = make(map[uint32]chan<- answer)
	}
	s.waiting[serial] = came
	return serial, came
}

// forget gives up on an answer, which may have come meanwhile.
func (s *stream) forget(serial uint32, came <-chan answer) {
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
func (s *stream) answered(serial uint32, message []byte, fds []int) {
	m, err := decodeAnswer(message, fds)
	if err != nil {
		closeAll(fds)
		m, fds = nil, nil
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	came := s.waiting[serial]
	if came == nil { // nobody waits any more
		closeAll(fds)
		return
	}
	delete(s.waiting, serial)
	came <- answer{m, fds}
}

func decodeAnswer(message []byte, fds []int) (m *godbus.Message, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("the bus sent an answer that cannot be decoded")
		}
	}()
	return godbus.DecodeMessageWithFDs(bytes.NewReader(message), fds)
}
