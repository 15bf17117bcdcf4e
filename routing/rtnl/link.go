package rtnl

import (
	"encoding/binary"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

const (
	loopback = 1 // its index in every network namespace

	attrType = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

	// From the kernel's if_link.h and ipv6.h.
	inet6Conf        = 2
	inet6AddrGenMode = 8
	confDisableIPv6  = 26
)

// linkInfo is what we look at of one link.
type linkInfo struct {
	routing.LinkState
	ipv6Disabled bool
}

// link looks at one. Where there is none, gone says so of the error.
func (c *conn) link(index int) (linkInfo, error) {
	req := c.request(unix.RTM_GETLINK, 0)
	ask := nl.NewIfInfomsg(unix.AF_UNSPEC)
	ask.Index = int32(index)
	req.AddData(ask)
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return linkInfo{}, err
	}
	if len(msgs) != 1 {
		return linkInfo{}, unix.ENODEV
	}
	head := nl.DeserializeIfInfomsg(msgs[0])
	attrs, err := nl.ParseRouteAttr(msgs[0][head.Len():])
	if err != nil {
		return linkInfo{}, err
	}
	info := linkInfo{LinkState: routing.LinkState{
		Index: index, Up: head.Flags&unix.IFF_UP != 0, AddrGen: routing.AddrGenNoIPv6,
	}}
	for _, a := range attrs {
		switch a.Attr.Type & attrType {
		case unix.IFLA_MTU:
			info.MTU = binary.NativeEndian.Uint32(a.Value)
		case unix.IFLA_IFALIAS:
			info.Alias = strings.TrimRight(string(a.Value), "\x00")
		case unix.IFLA_AF_SPEC:
			info.readIPv6(a.Value)
		}
	}
	return info, nil
}

// readIPv6 reads what IFLA_AF_SPEC has of IPv6, which is nothing where the
// kernel has none on the link.
func (l *linkInfo) readIPv6(spec []byte) {
	families, err := nl.ParseRouteAttr(spec)
	if err != nil {
		return
	}
	for _, f := range families {
		if f.Attr.Type&attrType != unix.AF_INET6 {
			continue
		}
		attrs, err := nl.ParseRouteAttr(f.Value)
		if err != nil {
			return
		}
		for _, a := range attrs {
			switch a.Attr.Type & attrType {
			case inet6AddrGenMode:
				l.AddrGen = routing.AddrGen(a.Value[0])
			case inet6Conf:
				if at := 4 * confDisableIPv6; len(a.Value) >= at+4 {
					l.ipv6Disabled = binary.NativeEndian.Uint32(a.Value[at:]) != 0
				}
			}
		}
	}
}
