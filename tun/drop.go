package tun

import "fmt"

// reason says why a packet was refused; pass is the reason of those that
// were not.
type reason uint8

const (
	pass           reason = iota
	length                // shorter than its header, or not as long as it says
	version               // neither IPv4 nor IPv6
	source                // the client may not claim this source
	destination           // not an address of the tunnel
	protocol              // router and neighbour discovery, redirects
	tooBig                // longer than the MTU
	header                // malformed or source-routed
	checksum              // of the IPv4 header
	notConfigured         // no policy yet
	outSource             // to the client: not from an address of the tunnel
	outDestination        // to the client: multicast, broadcast, link-local
	write                 // the TUN, or the channel's socket, refused it
	reasons
)

// String returns the name under which the reason is counted.
func (r reason) String() string {
	names := [reasons]string{
		"pass", "length", "version", "source", "destination", "protocol",
		"tooBig", "header", "checksum", "notConfigured", "outSource",
		"outDestination", "write",
	}
	return names[r]
}

// DropError says that Send refused a packet.
type DropError struct {
	// Reason is one of those that Statistics counts as dropped.<reason>.
	Reason string

	// Err is the kernel's error where Reason is "write", nil otherwise.
	Err error
}

func (e *DropError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("packet refused: %s: %v", e.Reason, e.Err)
	}
	return "packet refused: " + e.Reason
}

// Unwrap returns the kernel's error, if there was one.
func (e *DropError) Unwrap() error { return e.Err }
