package system

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// TestOCServ shows that the server side works with a plain openconnect as root:
// a page comes through the tunnel, and the private network is not reached in
// clear meanwhile.
func TestOCServ(t *testing.T) {
	t.Parallel()
	harness.Require(t, "openconnect", "ocserv", "dnsmasq", "curl")
	top := harness.NewTopology(t)
	web := harness.StartWeb(t, top.Server, 80)
	harness.StartDNS(t, top.Server, harness.PrivateDNS, map[string]string{"intranet.corp.test": "10.98.0.80"})
	server := harness.StartOCServ(t, top.Server, harness.OCServOptions{
		Network6: "fd99::/64", Network: "10.99.0.0/24",
		Routes: []string{harness.PrivateIPv4, harness.PrivateIPv6},
		DNS:    []string{harness.PrivateDNS}, SplitDNS: []string{"corp.test"}, Domain: "corp.test",
	})
	before := top.Host.Snapshot(t, "/etc/resolv.conf")

	// What openconnect tells its script is what a client is given; the routes
	// are set as its usual script does.
	script := `ip addr add $INTERNAL_IP4_ADDRESS/32 dev $TUNDEV; ip addr add $INTERNAL_IP6_NETMASK dev $TUNDEV nodad; ip link set $TUNDEV up mtu $INTERNAL_IP4_MTU
[ "$reason" = connect ] || exit 0
ip route add $CISCO_SPLIT_INC_0_ADDR/$CISCO_SPLIT_INC_0_MASKLEN dev $TUNDEV; ip route add $CISCO_IPV6_SPLIT_INC_0_ADDR/$CISCO_IPV6_SPLIT_INC_0_MASKLEN dev $TUNDEV
echo "dns=$INTERNAL_IP4_DNS domain=$CISCO_DEF_DOMAIN split=$CISCO_SPLIT_DNS up"`
	client := top.Host.Start(t, harness.Command{
		Argv:  append([]string{"openconnect"}, server.OpenConnect("--script="+script, "--interface=tun7")...),
		Stdin: server.Password + "\n",
	})
	client.Await(t, `dns=10\.98\.0\.53 domain=corp\.test split=corp\.test up`)

	clear := top.Clear(t)
	for url, network := range map[string]string{"http://10.98.0.80/": "10.99.0.0/24", "http://[fd98::80]/": "fd99::/64"} {
		got, err := top.Host.Fetch(t, url)
		if addr, parseErr := netip.ParseAddr(got); err != nil || parseErr != nil || !netip.MustParsePrefix(network).Contains(addr) {
			t.Errorf("%s came from %q (%v), want an address in %s", url, got, errors.Join(err, parseErr), network)
		}
	}
	if n := clear.Count(t, harness.To(harness.PrivateIPv4)) + clear.Count(t, harness.To(harness.PrivateIPv6)); n != 0 {
		t.Errorf("%d packets to the private network in clear:\n%v", n, clear)
	}
	if got := len(web.Remotes()); got != 2 {
		t.Errorf("the server saw %d requests, want 2", got)
	}
	if n := clear.Count(t, func(p harness.Packet) bool {
		return p.Dst == netip.MustParseAddr(harness.ServerIPv4) && p.DstPort == 443
	}); n == 0 {
		t.Errorf("nothing went to the VPN server:\n%v", clear)
	}

	client.Signal(unix.SIGTERM)
	_ = client.Wait(t) // it tells its signal
	top.Host.RequireSnapshot(t, before, "/etc/resolv.conf")
}
