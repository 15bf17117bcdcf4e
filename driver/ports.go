package driver

import (
	"context"
	"net/netip"
	"os"

	"github.com/vpnprovider/vpnproviderd/driver/params"
	"github.com/vpnprovider/vpnproviderd/routing"
)

// Network is the host's network, as routing.Network is: Apply and Lock go to the
// wanted state or, with an error, leave the previous one; an end goes on later. One
// of Resume and Sweep comes before them.
type Network interface {
	// Apply makes want the state of the session. The zero Config undoes
	// everything but a lockdown.
	Apply(ctx context.Context, want routing.Config) error

	// Lock begins or ends the lockdown, which holds with and without a session
	// and outlives the process.
	Lock(ctx context.Context, on bool) error

	// Locked says whether a lockdown is in force. It does not wait.
	Locked() bool

	// Resume makes want of what an earlier process left, with no gap, and a
	// lockdown where that is wanted or was found. It goes as far as it can; the
	// rest, of which the error tells, is tried again by who keeps the network.
	Resume(ctx context.Context, want routing.Config, lockdown bool) error

	// Sweep removes what an earlier process left, but a lockdown that is wanted
	// or was found.
	Sweep(ctx context.Context, lockdown bool) error
}

// Host tells what is on this host and exempts sockets from the tunnel.
type Host interface {
	// Facts are what parameters must not collide with. The addresses are
	// those of every interface but the one with the index except.
	Facts(ctx context.Context, except int) (params.Host, error)

	// Protect exempts one socket. It does not keep the file. bound are the
	// tunnel's addresses: a socket bound to one is refused. Errors are Errors
	// of this package.
	Protect(socket *os.File, bound []netip.Addr) error

	// Way says what becomes of a packet that a program of uid sends to dst.
	Way(ctx context.Context, dst netip.Addr, uid uint32) (Way, error)

	// Resolution is what is ours in the host's DNS, nil where nothing is.
	// splits says whether the host asks different servers for different names.
	Resolution() (r *routing.Resolution, splits bool)
}

// Opener makes tunnels and channels. They may outlive the process; what Adopt is
// not called for then ends.
type Opener interface {
	// Open makes the TUN of a slot, down and without addresses, and begins to
	// serve it.
	Open(ctx context.Context, slot int, events TunnelEvents) (routing.Link, Tunnel, error)

	// Adopt goes on with the TUN that has the link, and its channel, as an
	// earlier process left them. From the start passes lets through what it
	// says; nil: nothing. channel says whether there is one.
	Adopt(link routing.Link, passes *Traffic, events TunnelEvents) (tunnel Tunnel, channel bool, err error)

	// NewChannel makes a connected pair; the caller owns both ends.
	NewChannel(format ChannelFormat) (ours, theirs *os.File, err error)

	// CheckChannel says why f cannot be a channel.
	CheckChannel(f *os.File) error
}

// TunnelEvents is what a tunnel tells. The functions are called from
// goroutines of the tunnel and may take their time.
type TunnelEvents struct {
	// ChannelClosed: the client ended the channel. There may be another one by
	// now: see Tunnel.Attached.
	ChannelClosed func(err error)

	// Failed: the TUN died.
	Failed func(err error)

	// Packet takes packets for the client while there is no channel. nil: the
	// packets wait in the TUN.
	Packet func(packet []byte) error
}

// Tunnel moves packets between a TUN and a client. Methods may be called
// concurrently; after Close they fail or do nothing.
type Tunnel interface {
	// Permit sets what passes. Before the first call nothing does.
	Permit(t Traffic) error

	// Attach makes ch the channel, in place of an earlier one, which is
	// closed. It owns ch from then on, also where it fails.
	Attach(ch *os.File, format ChannelFormat) error

	// Attached says whether there is a channel that has not ended. It does not
	// wait.
	Attached() bool

	// Send puts one packet into the TUN, through the same filter.
	Send(packet []byte) error

	Statistics() map[string]uint64

	// Close ends the channel and removes the TUN.
	Close() error
}

// Capturer is a Tunnel whose packets can be watched.
type Capturer interface {
	// Capture gives the end to read of a pipe with a pcapng stream, which the
	// caller owns. ErrCaptures: there are as many as it bears.
	Capture() (*os.File, error)
}

// ChannelFormat is what the messages of a packet channel are.
type ChannelFormat int

// Formats.
const (
	FormatPacket  ChannelFormat = iota // a packet
	FormatOffload                      // a virtio-net header with a packet or super-packet
	FormatStream                       // a packet behind its length, in a stream
)

// Traffic is what a tunnel lets through.
type Traffic struct {
	Addresses        []netip.Addr // of the tunnel
	Include, Exclude []netip.Prefix
	Host             []netip.Addr // the host's other addresses
	MTU              int
}

// Store keeps records over restarts. Save is durable when it returns.
type Store interface {
	// Load gives all records that can be read. Damaged ones are set aside,
	// not returned as an error.
	Load() ([]Record, error)

	// Save may be called concurrently, for different configs.
	Save(r Record) error
	Delete(owner uint32, id ConfigID) error
}

// Consents keeps, over restarts, the apps that each user agreed to.
type Consents interface {
	// LoadConsents gives all that can be read. What is damaged is set aside,
	// not returned as an error.
	LoadConsents() (map[uint32][]string, error)

	// SaveConsents replaces those of one user. It is durable when it returns.
	SaveConsents(uid uint32, apps []string) error
}

// Record is what is stored of a config.
type Record struct {
	App           string
	Name          string
	Owner         uint32
	Source        string
	File          string // of the administrator's; empty: it is another's
	Data          Data
	AutoConnect   bool
	LastConnected uint64 // microseconds since the epoch

	// Delivered: the provider knows of the config.
	Delivered bool

	// Removed: the config is no more. It is kept while its provider is still to
	// be told, if Delivered, and while its lockdown is not ended.
	Removed bool

	Lockdown bool
}

// ID of the record's config.
func (r Record) ID() ConfigID { return NewConfigID(r.Owner, r.App, r.Name) }

// Observer is told what happened, in the order in which it happened. It is
// called with the manager's lock held: it must not block and not call back.
type Observer interface {
	Observe(n Notice)
}

// PacketReceiver hands packets to providers that have no channel.
type PacketReceiver interface {
	// Receiver gives the function that takes the packets of one session, in
	// order, from one goroutine. It may block until ctx ends; no packets are
	// read meanwhile. A packet is valid during the call.
	Receiver(ctx context.Context, to string, session SessionID) func(packet []byte) error
}
