package resolved

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/routing"
)

func TestSettings(t *testing.T) {
	four, six := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::53")
	servers := []server{
		{Family: 2, Address: []byte{10, 1, 2, 3}},
		{Family: 10, Address: []byte{0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53}},
	}
	for name, tt := range map[string]struct {
		dns  routing.DNS
		full bool
		want settings
	}{
		"some traffic": {
			routing.DNS{Search: []string{"corp.example"}},
			false,
			settings{domains: []domain{{"corp.example", false}}, defaultRoute: true},
		},
		"all traffic": {
			routing.DNS{Search: []string{"corp.example"}},
			true,
			settings{domains: []domain{{"corp.example", false}, {".", true}}, defaultRoute: true},
		},
		"split DNS": {
			routing.DNS{Match: []string{"corp.example", "lab.example"}},
			false,
			settings{domains: []domain{{"corp.example", true}, {"lab.example", true}}},
		},
		"split DNS, all traffic": {
			routing.DNS{Match: []string{"corp.example"}},
			true,
			settings{domains: []domain{{"corp.example", true}}},
		},
		"a domain of both kinds": {
			routing.DNS{Search: []string{"corp.example"}, Match: []string{"corp.example", "lab.example"}},
			false,
			settings{domains: []domain{{"corp.example", false}, {"lab.example", true}}},
		},
		"no domain": {routing.DNS{}, false, settings{domains: []domain{}, defaultRoute: true}},
	} {
		t.Run(name, func(t *testing.T) {
			tt.dns.Servers, tt.want.servers = []netip.Addr{four, six}, servers
			got := settingsOf(routing.Resolution{DNS: tt.dns, Full: tt.full})
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(settings{})); diff != "" {
				t.Error("- wanted + got\n" + diff)
			}
		})
	}
}

// TestMappedAddress: an IPv4 address is one, however it was written.
func TestMappedAddress(t *testing.T) {
	got := settingsOf(routing.Resolution{DNS: routing.DNS{Servers: []netip.Addr{netip.MustParseAddr("::ffff:10.1.2.3")}}})
	if got.servers[0].Family != 2 || len(got.servers[0].Address) != 4 {
		t.Errorf("%+v", got.servers)
	}
}
