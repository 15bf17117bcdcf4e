package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Way is what the kernel does with a packet to some destination.
type Way struct {
	// Refused: there is no route, and the sender is told.
	Refused bool

	Table uint32
	Rule  uint32 // priority; 0 is the rule for local addresses, or none is known
	Block netip.Prefix

	Interface string
	Index     int
	Gateway   netip.Addr // not valid on a link that needs none
	Source    netip.Addr // that the kernel chooses; not valid: none
}

// Way asks the kernel what becomes of an unmarked packet that a program of uid
// sends to dst, all rules considered.
func (k *Kernel) Way(ctx context.Context, dst netip.Addr, uid uint32) (Way, error) {
	if err := ctx.Err(); err != nil {
		return Way{}, err
	}
	dst = dst.Unmap().WithZone("")
	// The one answer has the route, the other what becomes of the packet.
	route, err := k.routeTo(dst, netlink.RouteGetOptions{UID: &uid, FIBMatch: true})
	if err != nil {
		if refused(err) {
			return Way{Refused: true}, nil
		}
		return Way{}, fmt.Errorf("cannot ask for the route to %s: %w", dst, err)
	}
	w := Way{Table: uint32(route.Table), Gateway: gateway(route.Gw, route.Via), Index: route.LinkIndex, Source: addrOf(route.Src)}
	if route.Dst != nil {
		bits, _ := route.Dst.Mask.Size()
		w.Block = netip.PrefixFrom(addrOf(route.Dst.IP), bits)
	}
	if sent, err := k.routeTo(dst, netlink.RouteGetOptions{UID: &uid}); err == nil {
		w.Index, w.Gateway, w.Source = sent.LinkIndex, gateway(sent.Gw, sent.Via), addrOf(sent.Src)
	}
	if link, err := k.handle.LinkByIndex(w.Index); err == nil {
		w.Interface = link.Attrs().Name
	}
	w.Rule, err = k.ruleOf(ctx, w.Table, uid, !dst.Is4())
	return w, err
}

func (k *Kernel) routeTo(dst netip.Addr, options netlink.RouteGetOptions) (netlink.Route, error) {
	routes, err := k.handle.RouteGetWithOptions(dst.AsSlice(), &options)
	if err != nil {
		return netlink.Route{}, err
	}
	if len(routes) == 0 {
		return netlink.Route{}, unix.ENETUNREACH
	}
	return routes[0], nil
}

// refused says whether an error is what a sender would get.
func refused(err error) bool {
	return slices.ContainsFunc([]error{
		unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.EAGAIN,
	}, func(e error) bool { return errors.Is(err, e) })
}

// ruleOf is the priority of the first rule for that table which a program of
// uid meets: the kernel does not tell by which one it came.
func (k *Kernel) ruleOf(ctx context.Context, table, uid uint32, v6 bool) (uint32, error) {
	rules, err := look(ctx, func() ([]netlink.Rule, error) { return k.handle.RuleList(familyOf(v6)) })
	if err != nil {
		return 0, fmt.Errorf("cannot list rules: %w", err)
	}
	for _, r := range rules {
		if uint32(r.Table) == table && (r.UIDRange == nil || r.UIDRange.Start <= uid && uid <= r.UIDRange.End) {
			return uint32(r.Priority), nil
		}
	}
	return 0, nil
}
