package nft

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// The names by which a later process finds what it must know.
const (
	lockdownOutput  = "lockdown-output"
	lockdownForward = "lockdown-forward"
	names           = "names"
	markedSet       = "src-valid-mark"
)

const loopback = 1 // its index in every network namespace

func inetTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

func arpTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyARP}
}

// replace puts into the transaction that our tables become what f says.
func replace(c *nftables.Conn, f *routing.Filter) {
	for _, t := range []*nftables.Table{inetTable(), arpTable()} {
		c.AddTable(t) // so that there is one to delete
		c.DelTable(t)
	}
	if f == nil {
		return
	}
	r := ruleset{conn: c, table: c.AddTable(inetTable()), filter: f}
	r.remember()
	r.protectAddresses()
	r.markIn()
	r.markOut()
	if f.Lockdown {
		r.lockdown()
	} else if f.Names {
		r.names()
	}
	arp := ruleset{conn: c, table: c.AddTable(arpTable()), filter: f}
	arp.silence()
}

// ruleset is one table in the making.
type ruleset struct {
	conn   *nftables.Conn
	table  *nftables.Table
	filter *routing.Filter
}

// chain is one in the making.
type chain struct {
	ruleset
	chain *nftables.Chain
}

func (c chain) add(parts ...exprs) {
	c.conn.AddRule(&nftables.Rule{Table: c.table, Chain: c.chain, Exprs: rule(parts...)})
}

// base adds a chain that the kernel calls. None has the policy to drop: that
// would hold from the moment in which the chain is made, before its rules do.
func (r ruleset) base(name string, kind nftables.ChainType, hook nftables.ChainHook, priority nftables.ChainPriority) chain {
	policy := nftables.ChainPolicyAccept
	return chain{r, r.conn.AddChain(&nftables.Chain{
		Name: name, Table: r.table, Type: kind, Hooknum: &hook, Priority: &priority, Policy: &policy,
	})}
}

// remember adds what only a later process reads.
func (r ruleset) remember() {
	if len(r.filter.Marked) == 0 {
		return
	}
	r.set(&nftables.Set{Name: markedSet}, r.filter.Marked)
}

// set adds one of links.
func (r ruleset) set(s *nftables.Set, links []int) *nftables.Set {
	s.Table, s.KeyType, s.KeyByteOrder = r.table, nftables.TypeIFIndex, binaryutil.NativeEndian
	var elements []nftables.SetElement
	for _, link := range links {
		elements = append(elements, nftables.SetElement{Key: native(uint32(link))})
	}
	// Keys of this type need nothing that could fail.
	_ = r.conn.AddSet(s, elements)
	return s
}

// toOneOf matches packets that go out by one of the links.
func (r ruleset) toOneOf(links []int) exprs {
	s := r.set(&nftables.Set{Anonymous: true, Constant: true}, links)
	return exprs{
		&expr.Meta{Key: expr.MetaKeyOIF, Register: register},
		&expr.Lookup{SourceRegister: register, SetName: s.Name, SetID: s.ID},
	}
}

// protectAddresses lets nobody but the tunnel speak to its addresses, and the
// tunnel say nothing that only a neighbour may. It comes before address
// translation, so that answers to containers, which have the tunnel's address
// until they are translated, pass.
func (r ruleset) protectAddresses() {
	raw := r.base("raw", nftables.ChainTypeFilter, unix.NF_INET_PRE_ROUTING, *nftables.ChainPriorityRaw)
	raw.add(from(loopback), accept()) // this host reaches itself
	for _, t := range r.filter.Tunnels {
		inward := r.inward(t)
		raw.add(from(t.Link), jumpTo(inward.chain.Name))
	}
	for _, t := range r.filter.Tunnels {
		for _, a := range t.Addresses {
			raw.add(destination(a), drop())
		}
	}
}

// inward is the chain for what comes out of a tunnel.
func (r ruleset) inward(t routing.TunnelEnd) chain {
	const routerSolicitation, redirectV6, redirect = 133, 137, 5
	c := chain{r, r.conn.AddChain(&nftables.Chain{Name: fmt.Sprintf("tunnel-%d", t.Link), Table: r.table})}
	c.add(icmp(true, routerSolicitation, redirectV6), drop()) // neighbour discovery, and all that comes with it
	c.add(icmp(false, redirect, redirect), drop())
	for _, p := range []string{
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8",
	} {
		c.add(source(netip.MustParsePrefix(p)), drop())
	}
	c.add(local(true), drop())
	c.add(addressType(true, unix.RTN_BROADCAST), drop())
	for _, p := range t.Spared {
		c.add(source(p), notTo(t.Link), drop())
	}
	for _, a := range t.Addresses {
		c.add(destination(a), accept())
	}
	c.add(drop())
	return c
}

// markIn gives packets the mark of their connection, where that goes around
// the tunnel, and marks the connections that others begin with this host.
func (r ruleset) markIn() {
	const echoV6, echo = 128, 8
	c := r.base("mark-in", nftables.ChainTypeFilter, unix.NF_INET_PRE_ROUTING, *nftables.ChainPriorityMangle)
	c.add(from(loopback), accept())
	for _, t := range r.filter.Tunnels {
		c.add(from(t.Link), accept())
	}
	c.add(connMarked(routing.MarkProtected), setMark(routing.MarkProtected))
	if r.filter.Lockdown {
		return
	}
	// The first packet that is seen of a connection need not be its first: one
	// that this host began long ago must not become one that others did. Never
	// UDP: a neighbour could then pull an application's traffic out of the
	// tunnel.
	for _, begins := range []exprs{opening(), icmp(false, echo, echo), icmp(true, echoV6, echoV6)} {
		c.add(begins, first(), local(false), setConnMark(routing.MarkReply))
	}
	c.add(connMarked(routing.MarkReply), setMark(routing.MarkReply))
}

// markOut marks the connections of protected sockets, and the answers to
// connections that others began. The kernel looks for their route again.
func (r ruleset) markOut() {
	c := r.base("mark-out", nftables.ChainTypeRoute, unix.NF_INET_LOCAL_OUT, *nftables.ChainPriorityMangle)
	c.add(marked(routing.MarkProtected), setConnMark(routing.MarkProtected))
	if !r.filter.Lockdown {
		c.add(reply(), connMarked(routing.MarkReply), setMark(routing.MarkReply))
	}
}

// inside accepts what goes into a tunnel or to this host's own machines.
func (c chain) inside() {
	for _, t := range c.filter.Tunnels {
		c.add(to(t.Link), accept())
	}
	if len(c.filter.Local) > 0 {
		c.add(c.toOneOf(c.filter.Local), accept())
	}
}

// output adds the chain that decides what may leave this host beside the
// tunnels.
func (r ruleset) output(name string) chain {
	c := r.base(name, nftables.ChainTypeFilter, unix.NF_INET_LOCAL_OUT, *nftables.ChainPriorityFilter)
	c.add(to(loopback), accept())
	c.inside()
	c.add(marked(routing.MarkProtected), accept())
	return c
}

// names drops questions for names. Those of ordinary programs follow the
// routes; these do not: what is asked of everybody on a link, and what a host's
// resolver asks the servers of a link.
func (r ruleset) names() {
	const dns, dnsOverTLS, mdns, llmnr = 53, 853, 5353, 5355
	c := r.output(names)
	for _, port := range []uint16{mdns, llmnr} {
		c.add(addressType(false, unix.RTN_MULTICAST), toPort(unix.IPPROTO_UDP, port), drop())
	}
	if r.filter.Asker == 0 {
		return
	}
	for _, port := range []uint16{dns, dnsOverTLS, mdns, llmnr} {
		for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			c.add(ofUser(r.filter.Asker), toPort(protocol, port), drop())
		}
	}
}

// lockdown drops what would leave this host otherwise than through a tunnel.
func (r ruleset) lockdown() {
	const routerSolicitation, neighbourSolicitation, neighbourAdvertisement = 133, 135, 136
	output := r.output(lockdownOutput)
	output.add(ports(68, 67), accept())
	output.add(icmp(true, routerSolicitation, routerSolicitation), accept())
	output.add(icmp(true, neighbourSolicitation, neighbourAdvertisement), accept())
	output.add(drop())
	forward := r.base(lockdownForward, nftables.ChainTypeFilter, unix.NF_INET_FORWARD, *nftables.ChainPriorityFilter)
	forward.inside()
	forward.add(drop())
}

// silence answers no question of a neighbour for an address of the tunnel. Other
// questions get a mark: a link that is strict about the way back would not
// answer them either where the way to the neighbour leads into the tunnel, and
// after a while the host's own router would not find it any more.
func (r ruleset) silence() {
	const input, targetAt = 0, 24 // NF_ARP_IN, and where Ethernet's ARP has it
	c := r.base("input", nftables.ChainTypeFilter, input, *nftables.ChainPriorityFilter)
	for _, t := range r.filter.Tunnels {
		for _, a := range t.Addresses {
			if a.Is4() {
				c.add(exprs{header(targetAt, 4), is(a.AsSlice()...)}, drop())
			}
		}
	}
	if len(r.filter.Tunnels) > 0 {
		c.add(setMark(routing.MarkReply))
	}
}
