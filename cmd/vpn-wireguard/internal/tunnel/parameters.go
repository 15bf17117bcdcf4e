package tunnel

import (
	"slices"

	"github.com/vpnprovider/vpnproviderd/cmd/internal/blocks"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/wgconf"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// parameters are what the configuration asks of the daemon, and warnings about
// what cannot be asked.
func parameters(c wgconf.Config) (p client.Parameters, warnings []string) {
	p = client.Parameters{MTU: c.MTU, DNSServers: c.DNS, DomainSearch: c.Search, Reconnect: true}
	for _, a := range c.Addresses {
		if a.Addr().IsLinkLocalUnicast() {
			warnings = append(warnings, "Address "+a.String()+" is left out: link-local addresses have no place in the tunnel")
			continue
		}
		p.Addresses = append(p.Addresses, a)
	}
	if c.NoRoutes {
		return p, warnings
	}
	for _, peer := range c.Peers {
		for _, block := range peer.AllowedIPs {
			block = block.Masked()
			switch {
			case slices.Contains(p.InclusionList, block): // of two peers, the last has it
			case blocks.IsLocal(block):
				warnings = append(warnings, "AllowedIPs "+block.String()+" is not routed into the tunnel: such addresses stay on their link")
			default:
				p.InclusionList = append(p.InclusionList, block)
			}
		}
	}
	return p, warnings
}
