// Package blocks knows which blocks of addresses have no place in a tunnel.
package blocks

import "net/netip"

// IsLocal reports whether a masked block has no addresses but those of this
// host, of its links, and of groups, or none that are destinations: the daemon
// refuses to send such a block into a tunnel. Servers and files list them all
// the same, for routers that speak to each other, so a client leaves them out.
func IsLocal(block netip.Prefix) bool {
	for _, text := range []string{
		"0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4",
		"::1/128", "fe80::/10", "ff00::/8", "::ffff:0:0/96",
	} {
		local := netip.MustParsePrefix(text)
		if block.Bits() >= local.Bits() && local.Contains(block.Addr()) {
			return true
		}
	}
	return false
}
