// Package rtnl carries out package routing's plans over rtnetlink, tells what
// of the host's network they depend on, and exempts sockets from the tunnel.
//
// Nothing here runs a program or writes below /proc: capability CAP_NET_ADMIN
// is all that is needed.
package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// Kernel is the routing.Kernel of one network namespace. Methods may be called
// concurrently; after Close they fail.
type Kernel struct {
	handle *netlink.Handle

	// strict has the kernel filter the routes that it lists.
	strict *netlink.Handle

	conn *conn
}

// NewKernel serves the network namespace of the calling thread, also when it
// is used from other threads later.
func NewKernel() (*Kernel, error) {
	k := &Kernel{}
	err := k.open()
	if err != nil {
		k.Close()
		return nil, fmt.Errorf("cannot open rtnetlink: %w", err)
	}
	return k, nil
}

func (k *Kernel) open() (err error) {
	if k.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if k.strict, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if err = k.strict.SetStrictCheck(true); err != nil {
		return err
	}
	k.conn, err = newConn()
	return err
}

// Close gives back the sockets. The network stays as it is.
func (k *Kernel) Close() {
	for _, h := range []*netlink.Handle{k.handle, k.strict} {
		if h != nil {
			h.Close()
		}
	}
	if k.conn != nil {
		k.conn.close()
	}
}

// Execute implements routing.Kernel. Routes that follow each other travel
// together.
func (k *Kernel) Execute(ctx context.Context, ops []routing.Op) []error {
	errs := make([]error, len(ops))
	failed := false
	for at := 0; at < len(ops); {
		routes := routesOf(ops[at:])
		n := max(len(routes), 1)
		if err := ctx.Err(); err != nil {
			errs[at], n = err, 1
		} else if len(routes) > 0 {
			copy(errs[at:], k.conn.routes(ctx, routes))
		} else {
			errs[at] = k.execute(ops[at])
		}
		for i := at; i < at+n; i++ {
			if errs[i] != nil {
				errs[i] = fmt.Errorf("cannot %s: %w", describe(ops[i]), errs[i])
				failed = true
			}
		}
		at += n
	}
	if !failed {
		return nil
	}
	return errs
}

// routesOf are the operations on routes with which ops begins.
func routesOf(ops []routing.Op) []routing.Op {
	for i, op := range ops {
		if _, ok := op.Object.(routing.Route); !ok {
			return ops[:i]
		}
	}
	return ops
}

func describe(op routing.Op) string {
	verb := "set"
	if op.Verb == routing.Delete {
		verb = "delete"
	}
	switch o := op.Object.(type) {
	case routing.LinkState:
		return fmt.Sprintf("%s link %d", verb, o.Index)
	case routing.Address:
		return fmt.Sprintf("%s address %s of link %d", verb, o.Addr, o.Link)
	case routing.Route:
		return fmt.Sprintf("%s route %s in table %#x", verb, o.Dst, o.Table)
	case routing.Rule:
		return fmt.Sprintf("%s rule for table %#x", verb, o.Table)
	case routing.MarkedLink:
		return fmt.Sprintf("%s src_valid_mark of link %d", verb, o.Link)
	}
	return verb
}

func (k *Kernel) execute(op routing.Op) error {
	var err error
	switch o := op.Object.(type) {
	case routing.LinkState:
		err = k.link(op.Verb, o)
	case routing.Address:
		err = k.address(op.Verb, o)
	case routing.Rule:
		err = k.rule(op.Verb, o)
	case routing.MarkedLink:
		if err = k.conn.setSrcValidMark(o.Link, op.Verb == routing.Put); gone(err) {
			return nil
		}
	}
	if op.Verb != routing.Put && gone(err) {
		return nil
	}
	return err
}

// gone says whether what was to be deleted, or its link, is no more.
func gone(err error) bool {
	return slices.ContainsFunc([]error{
		unix.ESRCH, unix.ENOENT, unix.ENODEV, unix.ENXIO, unix.EADDRNOTAVAIL,
	}, func(e error) bool { return errors.Is(err, e) })
}

func device(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// link sets the alias first and clears it last: while anything of ours is on
// the link it can be found.
func (k *Kernel) link(verb routing.Verb, o routing.LinkState) error {
	dev := device(o.Index)
	if verb == routing.Delete {
		return k.handle.LinkDel(dev)
	}
	alias := func() error { return k.handle.LinkSetAlias(dev, o.Alias) }
	calls := []func() error{
		func() error { return k.handle.LinkSetMTU(dev, int(o.MTU)) },
		func() error {
			if o.AddrGen == routing.AddrGenNoIPv6 {
				return nil
			}
			return k.handle.LinkSetIP6AddrGenMode(dev, int(o.AddrGen))
		},
		func() error {
			if o.Up {
				return k.handle.LinkSetUp(dev)
			}
			return k.handle.LinkSetDown(dev)
		},
	}
	if o.Alias == routing.Alias {
		calls = slices.Insert(calls, 0, alias)
	} else {
		calls = append(calls, alias)
	}
	for _, call := range calls {
		if err := call(); err != nil {
			return err
		}
	}
	if o.Up && o.AddrGen == routing.AddrGenNone {
		return k.dropLinkLocal(o.Index)
	}
	return nil
}

// dropLinkLocal removes what the kernel gave the link when its MTU became large
// enough for IPv6 while it was up, before it could be told not to.
func (k *Kernel) dropLinkLocal(index int) error {
	addrs, err := dump(context.Background(), func() ([]netlink.Addr, error) {
		return k.handle.AddrList(nil, netlink.FAMILY_V6)
	})
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.LinkIndex != index || !a.IP.IsLinkLocalUnicast() {
			continue
		}
		if err := k.handle.AddrDel(device(index), &a); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

func (k *Kernel) address(verb routing.Verb, o routing.Address) error {
	bits := o.Addr.BitLen()
	a := &netlink.Addr{
		IPNet: &net.IPNet{IP: o.Addr.AsSlice(), Mask: net.CIDRMask(bits, bits)},
		Flags: unix.IFA_F_NOPREFIXROUTE,
	}
	if !o.Addr.Is4() {
		a.Flags |= unix.IFA_F_NODAD
	}
	if verb == routing.Delete {
		return k.handle.AddrDel(device(o.Link), a)
	}
	if o.Broadcast.IsValid() {
		a.Broadcast = o.Broadcast.AsSlice()
	}
	return k.handle.AddrReplace(device(o.Link), a)
}

func (k *Kernel) rule(verb routing.Verb, o routing.Rule) error {
	r := netlink.NewRule()
	r.Family = familyOf(o.IPv6)
	r.Priority = int(o.Priority)
	r.Table = int(o.Table)
	r.Protocol = routing.Protocol
	r.Mark, r.Mask = o.Mark, &o.Mask
	r.Invert = o.Invert
	if verb == routing.Delete {
		return k.handle.RuleDel(r)
	}
	if err := k.handle.RuleAdd(r); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func familyOf(v6 bool) int {
	if v6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// List implements routing.Kernel.
func (k *Kernel) List(ctx context.Context) (routing.State, error) {
	s := routing.State{Links: map[int]routing.LinkState{}}
	links, err := dump(ctx, k.handle.LinkList)
	if err != nil {
		return s, fmt.Errorf("cannot list links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Alias != routing.Alias || l.Type() != "tuntap" {
			continue
		}
		info, infoErr := k.conn.link(l.Attrs().Index)
		if infoErr != nil {
			if gone(infoErr) {
				continue
			}
			return s, fmt.Errorf("cannot look at link %d: %w", l.Attrs().Index, infoErr)
		}
		s.Links[l.Attrs().Index] = info.LinkState
	}
	if s.Addresses, err = k.listAddresses(ctx, s.Links); err != nil {
		return s, fmt.Errorf("cannot list addresses: %w", err)
	}
	if s.Routes, err = k.listRoutes(ctx); err != nil {
		return s, fmt.Errorf("cannot list routes: %w", err)
	}
	if s.Rules, err = k.listRules(ctx); err != nil {
		return s, fmt.Errorf("cannot list rules: %w", err)
	}
	return s, nil
}

// listAddresses gives them in the order in which they came, IPv4 first. Of IPv6
// that is a guess: most kernels have those of a scope the other way round.
func (k *Kernel) listAddresses(ctx context.Context, links map[int]routing.LinkState) ([]routing.Address, error) {
	if len(links) == 0 {
		return nil, nil
	}
	found, err := dump(ctx, func() ([]netlink.Addr, error) { return k.handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	var v4, v6 []routing.Address
	for _, f := range found {
		if _, ours := links[f.LinkIndex]; !ours {
			continue
		}
		a := routing.Address{Link: f.LinkIndex, Addr: addrOf(f.IP), Broadcast: addrOf(f.Broadcast)}
		if a.Addr.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	slices.Reverse(v6)
	return append(v4, v6...), nil
}

// listRoutes gives the routes with our mark in our tables.
func (k *Kernel) listRoutes(ctx context.Context) (map[routing.RouteKey]routing.Route, error) {
	routes := map[routing.RouteKey]routing.Route{}
	for _, v6 := range []bool{false, true} {
		found, err := dump(ctx, func() (list []routing.Route, err error) {
			err = k.eachRoute(v6, netlink.Route{Protocol: routing.Protocol}, func(r netlink.Route) {
				if ours, ok := parseRoute(r); ok {
					list = append(list, ours)
				}
			})
			return list, err
		})
		if err != nil {
			return nil, err
		}
		for _, r := range found {
			routes[r.RouteKey] = r
		}
	}
	return routes, nil
}

// eachRoute calls f for each route of the protocol, table and type of filter,
// where they are set.
func (k *Kernel) eachRoute(v6 bool, filter netlink.Route, f func(netlink.Route)) error {
	mask := netlink.RT_FILTER_TABLE // without it, that of main is meant
	err := k.strict.RouteListFilteredIter(familyOf(v6), &filter, mask, func(r netlink.Route) bool {
		f(r)
		return true
	})
	if v6 && errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ENOENT) {
		return nil // a host without IPv6, a table without routes
	}
	return err
}

// parseRoute reads one that is ours; one of another type than ours is not.
func parseRoute(r netlink.Route) (routing.Route, bool) {
	ours := routing.Route{RouteKey: routing.RouteKey{Table: uint32(r.Table), Metric: uint32(r.Priority)}}
	if r.Dst != nil {
		bits, _ := r.Dst.Mask.Size()
		ours.Dst = netip.PrefixFrom(addrOf(r.Dst.IP), bits)
	}
	switch r.Type {
	case unix.RTN_UNICAST:
		ours.Type, ours.Link = routing.Unicast, r.LinkIndex
	case unix.RTN_THROW:
		ours.Type = routing.Throw
	case unix.RTN_UNREACHABLE:
		ours.Type = routing.Unreachable
	}
	return ours, ours.Type != 0 && ours.Dst.IsValid() && r.Protocol == routing.Protocol &&
		ours.Table-routing.TableBase < routing.MaxSlots
}

func (k *Kernel) listRules(ctx context.Context) ([]routing.Rule, error) {
	var list []routing.Rule
	for _, v6 := range []bool{false, true} {
		rules, err := dump(ctx, func() ([]netlink.Rule, error) { return k.handle.RuleList(familyOf(v6)) })
		if v6 && errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a host without IPv6
		}
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if r.Protocol != routing.Protocol || r.Priority < routing.RulePriorityMin || r.Priority > routing.RulePriorityMax {
				continue
			}
			rule := routing.Rule{
				IPv6: v6, Priority: uint32(r.Priority), Table: uint32(r.Table), Mark: r.Mark, Invert: r.Invert,
			}
			if r.Mask != nil {
				rule.Mask = *r.Mask
			}
			list = append(list, rule)
		}
	}
	return list, nil
}

// dump calls list until no change came in between, which leaves out or doubles
// entries. After some tries it gives up: what is missing would be taken for gone.
func dump[T any](ctx context.Context, list func() ([]T, error)) ([]T, error) {
	for range 20 {
		found, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return list()
}

// look is dump for what the host has, where an entry that is missing does little
// harm: a neighbour that has addresses change without a pause must not keep us
// from connecting.
func look[T any](ctx context.Context, list func() ([]T, error)) ([]T, error) {
	found, err := dump(ctx, list)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return found, nil
	}
	return found, err
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip) // nil gives the invalid one
	return a.Unmap()
}
