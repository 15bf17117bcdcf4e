package client

import "time"

// WithGrace shortens the time that the daemon has to come back.
func WithGrace(d time.Duration) Option { return func(o *options) { o.grace = d } }
