// Package bench measures the data path against what a client with root could
// have without the daemon, and the control path against its libraries. `make
// bench` runs it; docs/performance.md tells the method and has the result.
//
// The processes that move packets are test/bench/peer, and the daemon. The
// rows of a session are interleaved: only ratios of what one session measured
// mean anything, since the speed of a machine drifts.
package bench

// The addresses of every bed: of the tunnel, and of what lies behind it.
const (
	Near = "10.99.0.1"
	Far  = "10.99.0.2"
)
