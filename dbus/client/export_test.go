package client

import (
	"testing"
	"time"
)

// WithGrace shortens the time that the daemon has to come back.
func WithGrace(d time.Duration) Option { return func(o *options) { o.grace = d } }

// NewChannel makes a channel of a socket, without a session.
func NewChannel(t testing.TB, fd int) *Channel {
	t.Helper()
	ch, err := newChannel(fd, channelInfo(nil))
	if err != nil {
		t.Fatal(err)
	}
	return ch
}
