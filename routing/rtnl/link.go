package rtnl

import (
	"encoding/binary"
	"strings"
	"syscall"

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

	// From its if_link.h, ip.h and netconf.h.
	inetConf         = 1
	confRPFilter     = 8
	confSrcValidMark = 24
	netconfIndex     = 1
	netconfRPFilter  = 3
	netconfAll       = -1
)

// linkInfo is what we look at of one link.
type linkInfo struct {
	routing.LinkState
	ipv6Disabled bool

	// Of IPv4, as set for the link: rp_filter, and whether src_valid_mark is.
	rpFilter     uint32
	srcValidMark bool
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
			info.readIPv4(a.Value)
			info.readIPv6(a.Value)
		}
	}
	return info, nil
}

// readIPv4 reads what IFLA_AF_SPEC has of IPv4: an array, numbered from 1.
func (l *linkInfo) readIPv4(spec []byte) {
	for _, a := range nested(spec, unix.AF_INET) {
		if a.Attr.Type&attrType != inetConf {
			continue
		}
		value := func(number int) uint32 {
			if at := 4 * (number - 1); len(a.Value) >= at+4 {
				return binary.NativeEndian.Uint32(a.Value[at:])
			}
			return 0
		}
		l.rpFilter, l.srcValidMark = value(confRPFilter), value(confSrcValidMark) != 0
	}
}

// nested gives the attributes within the one of a kind.
func nested(attrs []byte, kind uint16) []syscall.NetlinkRouteAttr {
	outer, err := nl.ParseRouteAttr(attrs)
	if err != nil {
		return nil
	}
	for _, o := range outer {
		if o.Attr.Type&attrType != kind {
			continue
		}
		if inner, err := nl.ParseRouteAttr(o.Value); err == nil {
			return inner
		}
	}
	return nil
}

// readIPv6 reads what IFLA_AF_SPEC has of IPv6, which is nothing where the
// kernel has none on the link.
func (l *linkInfo) readIPv6(spec []byte) {
	for _, a := range nested(spec, unix.AF_INET6) {
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

// setSrcValidMark writes no file below /proc, where the service may not.
func (c *conn) setSrcValidMark(index int, on bool) error {
	value := uint32(0)
	if on {
		value = 1
	}
	req := c.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	to := nl.NewIfInfomsg(unix.AF_UNSPEC)
	to.Index = int32(index)
	req.AddData(to)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	spec.AddRtAttr(unix.AF_INET|unix.NLA_F_NESTED, nil).
		AddRtAttr(inetConf|unix.NLA_F_NESTED, nil).
		AddRtAttr(confSrcValidMark, nl.Uint32Attr(value))
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// rpFilterOfAll is the part of rp_filter that holds for every link: the larger
// one counts.
func (c *conn) rpFilterOfAll() (uint32, error) {
	req := c.request(unix.RTM_GETNETCONF, unix.NLM_F_ACK)
	req.AddData(netconfHead{})
	all := int32(netconfAll)
	req.AddData(nl.NewRtAttr(netconfIndex, nl.Uint32Attr(uint32(all))))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNETCONF)
	if err != nil {
		return 0, err
	}
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[netconfHead{}.Len():])
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type&attrType == netconfRPFilter && len(a.Value) == 4 {
				return binary.NativeEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, nil
}

// netconfHead is the head of a question about IPv4.
type netconfHead struct{}

func (netconfHead) Len() int          { return 4 }
func (netconfHead) Serialize() []byte { return []byte{unix.AF_INET, 0, 0, 0} }
