package client

import (
	"testing"
	"time"
)

// WithGrace shortens the time that the daemon has to come back.
func WithGrace(d time.Duration) Option { return func(o *options) { o.grace = d } }

// NewOffloadChannel makes a channel of the format "offload" of a socket,
// without a session.
func NewOffloadChannel(t testing.TB, fd int) *Channel {
	t.Helper()
	ch, err := newChannel(fd, ChannelInfo{Format: "offload"}, false)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// NewChannel makes a channel of a socket, without a session.
func NewChannel(t testing.TB, fd int) *Channel {
	t.Helper()
	ch, err := newChannel(fd, channelInfo(nil), false)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}
