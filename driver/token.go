package driver

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"os"
	"slices"
	"time"
)

const (
	// tokenLife is how long a token may be presented.
	tokenLife = 30 * time.Second

	// tokensPerSession is how many may wait to be.
	tokensPerSession = 16
)

// token makes a connection to the packet socket the channel of a session.
type token struct {
	text    string
	expires time.Time
}

// CreateToken makes a token of 32 hex digits. The provider's user can bring a
// channel with it, once, within 30 seconds.
func (m *Manager) CreateToken(by Caller, id SessionID) (text string, err error) {
	err = m.owned(by, id, func(s *session) error {
		now := time.Now()
		s.tokens = slices.DeleteFunc(s.tokens, func(t token) bool { return !t.expires.After(now) })
		if len(s.tokens) >= tokensPerSession {
			return Errorf(KindLimitExceeded, "session %d has %d tokens that nobody has used", id, tokensPerSession)
		}
		var secret [16]byte
		_, _ = rand.Read(secret[:]) // it never fails
		text = hex.EncodeToString(secret[:])
		s.tokens = append(s.tokens, token{text, now.Add(tokenLife)})
		return nil
	})
	return text, err
}

// ClaimToken takes a token that a program of uid presents: it is good no more.
// attach then makes that program's connection the channel of the session, in
// place of an earlier one, and owns it, also where it fails.
func (m *Manager) ClaimToken(uid uint32, text string) (attach func(ch *os.File, format ChannelFormat) error, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.active
	if s == nil || s.state == Disconnecting || s.config.Owner != uid {
		return nil, Errorf(KindNotFound, "user %d has no session", uid)
	}
	found := -1
	for i, t := range s.tokens { // as long for each, right or wrong
		if subtle.ConstantTimeCompare([]byte(t.text), []byte(text)) == 1 {
			found = i
		}
	}
	if found < 0 {
		return nil, Errorf(KindNotFound, "session %d has no such token", s.id)
	}
	expires := s.tokens[found].expires
	s.tokens = slices.Delete(s.tokens, found, found+1)
	if !expires.After(time.Now()) {
		return nil, Errorf(KindNotFound, "the token of session %d has expired", s.id)
	}
	return func(ch *os.File, format ChannelFormat) error {
		_, err := m.attach(Caller{UID: uid, Conn: s.conn}, s.id, ch, format)
		return err
	}, nil
}
