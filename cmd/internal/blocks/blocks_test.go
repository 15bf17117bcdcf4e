package blocks

import (
	"net/netip"
	"testing"

	"github.com/vpnprovider/vpnproviderd/driver/params"
)

// What is local is what the daemon refuses, and nothing else.
func TestIsLocal(t *testing.T) {
	for text, want := range map[string]bool{
		"0.0.0.0/0": false, "0.0.0.0/1": false, "0.0.0.0/7": false, "0.0.0.0/8": true, "0.1.0.0/16": true, "1.0.0.0/8": false,
		"127.0.0.0/8": true, "127.0.0.53/32": true, "126.0.0.0/7": false, "128.0.0.0/1": false,
		"224.0.0.0/3": false, "224.0.0.0/4": true, "239.1.0.0/16": true, "240.0.0.0/4": true, "255.255.255.255/32": true,
		"169.254.0.0/16": false, "10.0.0.0/8": false,
		"::/0": false, "::1/128": true, "::/128": false, "fe80::/10": true, "fe80::/64": true, "fe00::/9": false, "fec0::/10": false,
		"ff00::/8": true, "ff02::1/128": true, "fd00::/8": false, "2000::/3": false, "::ffff:0:0/96": true, "::/96": false,
	} {
		block := netip.MustParsePrefix(text)
		if got := IsLocal(block); got != want {
			t.Errorf("%s: %v", text, got)
		}
		_, _, err := params.Parse(map[string]any{"addresses": []string{"10.8.0.2/32", "fd08::2/128"}, "inclusionList": []string{text}})
		if refused := err != nil; refused != want {
			t.Errorf("%s: the daemon says %v", text, err)
		}
	}
}
