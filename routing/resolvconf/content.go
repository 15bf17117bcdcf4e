package resolvconf

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// compose writes the file for r. The options of the file before stay.
func compose(r routing.Resolution, before []byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by vpnproviderd for the VPN on %s. What was here before comes back when\n", r.Link.Name)
	b.WriteString("# it disconnects; should the daemon be gone, run: vpnproviderd --cleanup\n")
	if len(r.DNS.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.DNS.Search, " "))
	}
	for _, s := range r.DNS.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	for fields := range lines(before) {
		if fields[0] == "options" {
			fmt.Fprintf(&b, "%s\n", strings.Join(fields, " "))
		}
	}
	return b.String()
}

// parse reads the servers and search domains of a file. As the C library does,
// it takes the last of several search lines.
func parse(content []byte) (servers []netip.Addr, domains []string) {
	for fields := range lines(content) {
		switch fields[0] {
		case "nameserver":
			if len(fields) < 2 {
				continue
			}
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				servers = append(servers, a)
			}
		case "search", "domain":
			domains = fields[1:]
		}
	}
	return servers, domains
}

// lines gives the words of each line that has some and is no comment.
func lines(content []byte) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(string(content)) {
			fields := strings.Fields(line)
			if len(fields) == 0 || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
				continue
			}
			if !yield(fields) {
				return
			}
		}
	}
}
