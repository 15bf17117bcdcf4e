package rtnl

import "github.com/vishvananda/netlink"

// place is where a link leads.
type place uint8

const (
	elsewhere place = iota // a tunnel, the loopback, or not known
	physical               // off this host
	virtual                // only to containers and virtual machines of this host
)

// classify says of each link where it leads, by these rules, the first that
// fits:
//
//   - The link of a default route in the main table leads off this host,
//     whatever its kind: in a container it is a veth. A tunnel stays one.
//   - A link without a kind is a device's, if it speaks Ethernet.
//   - A bridge leads where its ports lead: off this host if any port does.
//   - veth, netkit, dummy and tap devices are virtual.
//   - What rests on another link (vlan, macvlan, ipvlan) leads where that one
//     leads; one in another network namespace leads off this one.
//   - A bond, a team and the port of a switch lead off this host.
//   - Everything else is a tunnel, or nothing that has a subnet.
func classify(links []netlink.Link, hops []hop) map[int]place {
	c := classifier{links: map[int]netlink.Link{}, ports: map[int][]int{}, places: map[int]place{}, uplink: map[int]bool{}}
	for _, l := range links {
		a := l.Attrs()
		c.links[a.Index] = l
		if a.MasterIndex != 0 {
			c.ports[a.MasterIndex] = append(c.ports[a.MasterIndex], a.Index)
		}
	}
	for _, h := range hops {
		c.uplink[h.link] = true
	}
	for index := range c.links {
		c.place(index)
	}
	return c.places
}

type classifier struct {
	links  map[int]netlink.Link
	ports  map[int][]int // by the index of their bridge, bond or the like
	uplink map[int]bool
	places map[int]place
}

func (c classifier) place(index int) place {
	if p, known := c.places[index]; known {
		return p
	}
	c.places[index] = elsewhere // while it is being found: links may form a ring
	p := c.find(index)
	c.places[index] = p
	return p
}

func (c classifier) find(index int) place {
	l, ok := c.links[index]
	if !ok {
		return elsewhere
	}
	a := l.Attrs()
	ethernet := a.EncapType == "ether"
	if c.uplink[index] && ethernet {
		return physical
	}
	switch l.Type() {
	case "device":
		if ethernet {
			return physical
		}
	case "bridge":
		for _, port := range c.ports[index] {
			if c.place(port) == physical {
				return physical
			}
		}
		return virtual
	case "veth", "netkit", "dummy":
		return virtual
	case "tuntap":
		if ethernet {
			return virtual
		}
	case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap":
		if a.NetNsID != -1 || a.ParentIndex == 0 {
			return physical
		}
		return c.place(a.ParentIndex)
	case "bond", "team", "dsa":
		return physical
	}
	return elsewhere
}
