// Package nft is the host's packet filter as far as it is ours: the tables
// `inet vpnprovider` and `arp vpnprovider`, and nobody else's. They are replaced
// whole, in one transaction a change, and have no owner flag: they outlive the
// process. CAP_NET_ADMIN is all that is needed.
package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

const (
	// tableName is that of all our tables.
	tableName = "vpnprovider"

	// receiveBuffer has room for the answers to all messages of a transaction.
	receiveBuffer = 1 << 20

	// timeout bounds the wait for answers. The kernel gives them before the
	// call that sends returns: one that is missing by then does not come.
	timeout = 5 * time.Second
)

// Firewall is the routing.Firewall of one network namespace. Methods may be
// called concurrently; after Close they fail.
type Firewall struct {
	mu   sync.Mutex // protects all, and a whole exchange with the kernel
	nft  *nftables.Conn
	conn *netlink.Conn // that of nft
	port uint32        // of conn, as the kernel's messages name it

	// set is the filter that was set last, and generation the number that the
	// kernel gave to the ruleset with it: while it is the same nobody has
	// changed anything. 0 is not known.
	set        *routing.Filter
	generation uint32
}

// New serves the network namespace of the calling thread, also when it is used
// from other threads later.
func New() (*Firewall, error) {
	f := &Firewall{}
	var err error
	f.nft, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		f.conn = c
		return c.SetReadBuffer(receiveBuffer)
	}))
	if err != nil {
		return nil, fmt.Errorf("cannot open nftables: %w", err)
	}
	if f.port, err = portOf(f.conn); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open nftables: %w", err), f.Close())
	}
	return f, nil
}

func portOf(c *netlink.Conn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var name unix.Sockaddr
	var inner error
	if err = raw.Control(func(fd uintptr) { name, inner = unix.Getsockname(int(fd)) }); err != nil {
		return 0, err
	}
	if a, ok := name.(*unix.SockaddrNetlink); ok {
		return a.Pid, nil
	}
	return 0, errors.Join(inner, errors.New("the socket has no port"))
}

// Close gives back the socket. The tables stay as they are.
func (f *Firewall) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conn.Close()
}

// Set implements routing.Firewall.
func (f *Firewall) Set(ctx context.Context, want *routing.Filter) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(ctx); err != nil {
		return err
	}
	f.generation = 0
	before, err := f.ask()
	if err != nil {
		return f.drain(err)
	}
	replace(f.nft, want)
	if err = f.nft.Flush(); err != nil {
		return f.drain(err)
	}
	after, err := f.ask()
	if err != nil {
		return f.drain(err)
	}
	f.set = want
	// Others may have changed something between the questions: what they did is
	// found by the next Find, as the number is then another one.
	if f.generation = before + 1; f.generation != after {
		f.generation = 0
	}
	return nil
}

// Find implements routing.Firewall.
func (f *Firewall) Find(ctx context.Context) (*routing.Filter, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(ctx); err != nil {
		return nil, err
	}
	found, err := f.find()
	if err != nil {
		return nil, fmt.Errorf("cannot look at the firewall: %w", f.drain(err))
	}
	return found, nil
}

func (f *Firewall) find() (*routing.Filter, error) {
	now, err := f.ask()
	if err != nil {
		return nil, err
	}
	if f.generation != 0 && f.generation == now {
		return f.set, nil
	}
	inet, err := f.exists(unix.NFT_MSG_GETTABLE, inetTable())
	if err != nil {
		return nil, err
	}
	arp, err := f.exists(unix.NFT_MSG_GETTABLE, arpTable())
	if err != nil || !inet && !arp {
		return nil, err
	}
	found := &routing.Filter{Unsure: true}
	for _, name := range []string{lockdownOutput, lockdownForward} {
		there, err := f.exists(unix.NFT_MSG_GETCHAIN, inetTable(), named(unix.NFTA_CHAIN_NAME, name))
		if err != nil {
			return nil, err
		}
		found.Lockdown = found.Lockdown || there
	}
	found.Marked, err = f.marked()
	return found, err
}

// marked reads the set that remembers the marked links.
func (f *Firewall) marked() ([]int, error) {
	there, err := f.exists(unix.NFT_MSG_GETSET, inetTable(), named(unix.NFTA_SET_NAME, markedSet))
	if err != nil || !there {
		return nil, err
	}
	elements, err := f.nft.GetSetElements(&nftables.Set{Table: inetTable(), Name: markedSet})
	if err != nil {
		return nil, err
	}
	var links []int
	for _, e := range elements {
		if len(e.Key) == 4 {
			links = append(links, int(binaryutil.NativeEndian.Uint32(e.Key)))
		}
	}
	slices.Sort(links)
	return links, nil
}

// begin bounds what follows.
func (f *Firewall) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	deadline := time.Now().Add(timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	return f.conn.SetDeadline(deadline)
}

// drain takes the answers away that an exchange which failed has left, so that
// the next one does not take them for its own.
func (f *Firewall) drain(err error) error {
	for range 1000 {
		if e := f.conn.SetReadDeadline(time.Now().Add(time.Millisecond)); e != nil {
			return err // it is closed
		}
		if _, e := f.conn.Receive(); errors.Is(e, os.ErrDeadlineExceeded) || errors.Is(e, os.ErrClosed) {
			return err
		}
	}
	return err
}

// ask asks for the number of the ruleset.
func (f *Firewall) ask() (uint32, error) {
	answers, err := f.get(unix.NFT_MSG_GETGEN, 0)
	if err != nil {
		return 0, err
	}
	for _, m := range answers {
		if number := attribute(m.Data, unix.NFTA_GEN_ID); len(number) == 4 {
			return binary.BigEndian.Uint32(number), nil
		}
	}
	return 0, errors.New("the kernel does not number its rulesets")
}

// exists asks for an object of a table, or for the table. The library's own
// questions do not tell which error the answer is.
func (f *Firewall) exists(question netlink.HeaderType, t *nftables.Table, which ...netlink.Attribute) (bool, error) {
	const table = 1 // the number of its name, whatever is asked for
	_, err := f.get(question, byte(t.Family), append(which, named(table, t.Name))...)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

func named(attribute uint16, name string) netlink.Attribute {
	return netlink.Attribute{Type: attribute, Data: []byte(name + "\x00")}
}

func (f *Firewall) get(question netlink.HeaderType, family byte, which ...netlink.Attribute) ([]netlink.Message, error) {
	attributes, err := netlink.MarshalAttributes(which)
	if err != nil {
		return nil, err
	}
	return f.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | question, Flags: netlink.Request},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attributes...),
	})
}

// generalHeader is the length of the family, version and resource with which
// each message begins.
const generalHeader = 4

// attribute finds one in a message of nftables.
func attribute(message []byte, kind uint16) []byte {
	if len(message) < generalHeader {
		return nil
	}
	attributes, err := netlink.UnmarshalAttributes(message[generalHeader:])
	if err != nil {
		return nil
	}
	for _, a := range attributes {
		if a.Type == kind {
			return a.Data
		}
	}
	return nil
}
