package resolved

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// settings are what resolved is told of a link, as D-Bus has it.
type settings struct {
	servers []server
	domains []domain

	// defaultRoute: names that no domain of any link matches are asked here,
	// too.
	defaultRoute bool
}

// server is one DNS server, (iayqs). The default port, and no name that its
// certificate must have.
type server struct {
	Family  int32
	Address []byte
	Port    uint16
	Name    string
}

// plainServer is one, (iay), for SetLinkDNS.
type plainServer struct {
	Family  int32
	Address []byte
}

// domain is one, (sb). Names below it are asked here; unless RouteOnly is set
// it is also added to single names.
type domain struct {
	Name      string
	RouteOnly bool
}

// allNames is the domain that every name is below.
const allNames = "."

// settingsOf translates. With match domains only names below those are for the
// tunnel's servers, however much of the traffic is.
func settingsOf(r routing.Resolution) settings {
	s := settings{
		servers: make([]server, 0, len(r.DNS.Servers)), domains: []domain{},
		defaultRoute: len(r.DNS.Match) == 0,
	}
	for _, a := range r.DNS.Servers {
		s.servers = append(s.servers, serverAt(a.Unmap()))
	}
	for _, name := range r.DNS.Search {
		s.add(name, false)
	}
	for _, name := range r.DNS.Match {
		s.add(name, true)
	}
	if r.Full && s.defaultRoute {
		s.add(allNames, true)
	}
	return s
}

// add adds a domain that is not there yet: resolved would take the last of two.
func (s *settings) add(name string, routeOnly bool) {
	if !slices.ContainsFunc(s.domains, func(d domain) bool { return d.Name == name }) {
		s.domains = append(s.domains, domain{name, routeOnly})
	}
}

func serverAt(a netip.Addr) server {
	family := int32(unix.AF_INET6)
	if a.Is4() {
		family = unix.AF_INET
	}
	return server{Family: family, Address: a.AsSlice()}
}

func (s settings) plainServers() []plainServer {
	plain := make([]plainServer, len(s.servers))
	for i, server := range s.servers {
		plain[i] = plainServer{server.Family, server.Address}
	}
	return plain
}
