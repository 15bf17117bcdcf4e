package wgconf

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Keys of nobody, made for these tests.
const (
	privateKey = "qOrRbvAo2sEIrGI+w97dl3FBEVlvZ1DA4AnURNTFK20="
	publicKey  = "1+BUsmjbBIUeXB5VvBMunGuv2twi3PnfMC+wkP4iEH8="
	peerKey    = "DsUxJIDCuNZmkl7Bl8HdaI9dB0pfQCoCR1yd7QqMQXo="
	peerKey2   = "0F9CZ7yQNz0HiyJOy24ruBNHbMkbpPsjpUUxe7UGHk8="
	shared     = "FKTVPQOlKvPZ6PbQKWAkFCQ4Hm8Yu0jXAyY8ZTkJ0cE="
)

const typical = `# from the administrator
[Interface]
PrivateKey = ` + privateKey + `
Address = 10.66.0.2/24, fd66::2/64
Address = 10.67.0.2
DNS = 10.66.0.1, fd66::1, corp.example
ListenPort = 51820

[Peer] # the office
PublicKey = ` + peerKey + `
PresharedKey=` + shared + `
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = vpn.example.com:51820
PersistentKeepalive = 25

[Peer]
PublicKey = ` + peerKey2 + `
AllowedIPs = 192.168.7.0/24
AllowedIPs = 192.168.8.1
Endpoint = [2001:db8::1]:443
`

func mustKey(t testing.TB, text string) Key {
	t.Helper()
	k, err := parseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func TestTypicalFile(t *testing.T) {
	want := Config{
		PrivateKey: Secret{mustKey(t, privateKey)},
		ListenPort: 51820,
		Addresses:  prefixes("10.66.0.2/24", "fd66::2/64", "10.67.0.2/32"),
		DNS:        []netip.Addr{netip.MustParseAddr("10.66.0.1"), netip.MustParseAddr("fd66::1")},
		Search:     []string{"corp.example"},
		MTU:        1420,
		Peers: []Peer{{
			PublicKey: mustKey(t, peerKey), PresharedKey: Secret{mustKey(t, shared)},
			AllowedIPs: prefixes("0.0.0.0/0", "::/0"), Endpoint: Endpoint{"vpn.example.com", 51820}, Keepalive: 25,
		}, {
			PublicKey: mustKey(t, peerKey2), AllowedIPs: prefixes("192.168.7.0/24", "192.168.8.1/32"),
			Endpoint: Endpoint{"2001:db8::1", 443},
		}},
	}
	windows := "\xef\xbb\xbf" + strings.ReplaceAll(typical, "\n", "\r\n")
	shouted := strings.NewReplacer("PrivateKey", "PRIVATEKEY", "[Peer]", "[PEER]", "AllowedIPs", "allowedips", "PublicKey =", "publickey=").Replace(typical)
	for name, text := range map[string]string{"as it is": typical, "from Windows": windows, "in other case": shouted} {
		got, err := Parse("work.conf", []byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Secret{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s: - want + got\n%s", name, diff)
		}
	}
}

// small is the smallest file, with lines added to its sections.
func small(inInterface, inPeer string) string {
	return "[Interface]\nPrivateKey = " + privateKey + "\nAddress = 10.0.0.2/32\n" + inInterface +
		"\n[Peer]\nPublicKey = " + peerKey + "\n" + inPeer + "\n"
}

func TestValues(t *testing.T) {
	for line, check := range map[string]func(Config) bool{
		"MTU = 1280":                      func(c Config) bool { return c.MTU == 1280 },
		"MTU = 0":                         func(c Config) bool { return c.MTU == 1420 },
		"Table = off":                     func(c Config) bool { return c.NoRoutes },
		"Table = auto":                    func(c Config) bool { return !c.NoRoutes },
		"SaveConfig = false":              func(c Config) bool { return len(c.Warnings) == 0 },
		"FwMark = 0xca6c":                 func(c Config) bool { return len(c.Warnings) == 1 && strings.Contains(c.Warnings[0], "FwMark") },
		"DNS = 9.9.9.9\nDNS=a.example":    func(c Config) bool { return len(c.DNS) == 1 && c.Search[0] == "a.example" },
		"Address = fd00::7 # no length":   func(c Config) bool { return c.Addresses[1] == netip.MustParsePrefix("fd00::7/128") },
		"# PostUp = iptables -A FORWARD ": func(c Config) bool { return true },
	} {
		c, err := Parse("x", []byte(small(line, "")))
		if err != nil || !check(c) {
			t.Errorf("%s: %v, %+v", line, err, c)
		}
	}
	for line, check := range map[string]func(Peer) bool{
		"PersistentKeepalive = off": func(p Peer) bool { return p.Keepalive == 0 },
		"PersistentKeepalive = 15":  func(p Peer) bool { return p.Keepalive == 15 },
		"AllowedIPs =":              func(p Peer) bool { return p.AllowedIPs == nil },
		"AllowedIPs = 10.1.2.3/8":   func(p Peer) bool { return p.AllowedIPs[0] == netip.MustParsePrefix("10.1.2.3/8") },
		"Endpoint = 192.0.2.1:51820": func(p Peer) bool {
			return p.Endpoint.Addr() == netip.MustParseAddr("192.0.2.1") && p.Endpoint.String() == "192.0.2.1:51820"
		},
		"Endpoint = a-b.example:1": func(p Peer) bool { return !p.Endpoint.Addr().IsValid() && p.Endpoint.Port == 1 },
		"":                         func(p Peer) bool { return p.Endpoint.IsZero() },
	} {
		c, err := Parse("x", []byte(small("", line)))
		if err != nil || !check(c.Peers[0]) {
			t.Errorf("%s: %v, %+v", line, err, c)
		}
	}
}

func TestProblems(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "w:1: the file ends without a section [Interface]"},
		{"", "w:1: the file ends without a section [Peer]"},
		{"MTU = 1420\n", "w:1: MTU: stands before the first section"},
		{"[Interface]\n", "w:1: PrivateKey: is missing in this section"},
		{"[Interface]\n", "w:1: Address: is missing in this section"},
		{"\n[Peer]\n", "w:2: PublicKey: is missing in this section"},
		{"[Wireguard]\nPrivateKey=x", "w:1: is an unknown section: there are [Interface] and [Peer]"},
		{"[Interface]\n[Interface]\n", "w:2: is a second [Interface]"},
		{small("PostUp = reboot", ""), "w:4: PostUp: is refused"},
		{small("preDown = reboot", ""), "w:4: preDown: is refused"},
		{small("SaveConfig = true", ""), "w:4: SaveConfig: is refused"},
		{small("Table = 1234", ""), "w:4: Table: is refused"},
		{small("AllowedIPs = 10.0.0.0/8", ""), "w:4: AllowedIPs: is an unknown key in this section"},
		{small("Jc = 4", ""), "w:4: Jc: is an unknown key in this section"},
		{small("MTU = large", ""), "w:4: MTU: is not a number from 0 to 65535"},
		{small("ListenPort = 65536", ""), "w:4: ListenPort: is not a number from 0 to 65535"},
		{small("ListenPort = 1\nlistenport = 2", ""), "w:5: listenport: is given twice"},
		{small("Address = 10.0.0.256/24", ""), `w:4: Address: "10.0.0.256/24" is not an address or block`},
		{small("Address = fe80::1%eth0/64", ""), "w:4: Address: "},
		{small("DNS = one.one.one.one, 1.1.1", ""), ""}, // 1.1.1 could be a domain
		{small("DNS = 1.1.1.1 what/this", ""), `w:4: DNS: "what/this" is neither an address nor a domain`},
		{small("DNS = ", ""), ""}, // some generators write that
		{small("DNS = 1.1.1.1,", ""), ""},
		{small("Address = ", ""), "w:4: Address: is empty"},
		{small("Address = ,", ""), "w:4: Address: is empty"},
		{small("just text", ""), "w:4: is neither a section nor Key = value"},
		{small("", "Endpoint = vpn.example.com"), `w:7: Endpoint: "vpn.example.com" is not HOST:PORT or [IPv6]:PORT`},
		{small("", "Endpoint = vpn.example.com:0"), "w:7: Endpoint: "},
		{small("", "Endpoint = 2001:db8::1:51820"), "w:7: Endpoint: "},
		{small("", "Endpoint = :51820"), "w:7: Endpoint: "},
		{small("", "PresharedKey = abc"), "w:7: PresharedKey: is not a key, which has 44 characters of base64"},
		{small("", "AllowedIPs = +10.0.0.0/8"), "w:7: AllowedIPs: "},
		{small("", "PersistentKeepalive = -1"), "w:7: PersistentKeepalive: is not a number"},
		{small("", "[Peer]\nPublicKey = "+peerKey), "w:7: PublicKey: is another peer's, too"},
		{small("", "[Peer]\nPublicKey = "+publicKey), "w:7: PublicKey: is this end's own"},
	} {
		_, err := Parse("w", []byte(c.text))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%q: %v", c.text, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%q\ngave %v\nwant %s", c.text, err, c.want)
		}
		var problem LineError
		if err != nil && !errors.As(err, &problem) {
			t.Errorf("%v is no LineError", err)
		}
	}
	if _, err := Parse("w", make([]byte, maxSize+1)); err == nil {
		t.Error("a huge file was read")
	}
}

func TestEveryProblemIsNamed(t *testing.T) {
	_, err := Parse("w", []byte(small("PostUp = a\nPostDown = b", "Endpoint = x\nColour = blue")))
	if n := len(strings.Split(fmt.Sprint(err), "\n")); n != 4 {
		t.Errorf("%d problems: %v", n, err)
	}
}

// A key that got to a wrong place is not shown.
func TestProblemsHideKeys(t *testing.T) {
	for _, line := range []string{
		privateKey, "PrivatKey = " + privateKey, "PrivateKey = x" + privateKey, "PrivateKey = " + privateKey + " x",
		"DNS = " + privateKey, "Address = " + privateKey, "Endpoint = " + privateKey + ":1", "[" + privateKey + "]",
		"Table = " + privateKey, "MTU = " + privateKey, privateKey + " = x", "SaveConfig = " + privateKey, "DNS = a " + privateKey,
	} {
		for _, text := range []string{small(line, ""), small("", line), line} {
			if _, err := Parse("w", []byte(text)); err == nil || strings.Contains(err.Error(), privateKey[:20]) {
				t.Errorf("%s\ngave %v", line, err)
			}
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	c, err := Parse("w", []byte(typical))
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		for _, secret := range []string{privateKey, shared} {
			key := mustKey(t, secret)
			text := fmt.Sprintf(verb, c)
			numbers := strings.Trim(fmt.Sprintf("%d", key[:4]), "[]")
			if strings.Contains(text, secret[:20]) || strings.Contains(text, key.Hex()[:20]) || strings.Contains(text, numbers) {
				t.Errorf("%s shows a secret: %s", verb, text)
			}
		}
	}
}

func TestPublicKey(t *testing.T) {
	if got := (Secret{mustKey(t, privateKey)}).PublicKey().String(); got != publicKey {
		t.Errorf("got %s", got)
	}
}

func TestUAPI(t *testing.T) {
	c, err := Parse("w", []byte(typical))
	if err != nil {
		t.Fatal(err)
	}
	inHex := func(key string) string { k := mustKey(t, key); return hex.EncodeToString(k[:]) }
	want := "private_key=" + inHex(privateKey) + "\nlisten_port=51820\nreplace_peers=true\n" +
		"public_key=" + inHex(peerKey) + "\npreshared_key=" + inHex(shared) + "\npersistent_keepalive_interval=25\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n" +
		"public_key=" + inHex(peerKey2) + "\npersistent_keepalive_interval=0\nallowed_ip=192.168.7.0/24\nallowed_ip=192.168.8.1/32\n"
	if got := c.UAPI(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(typical))
	f.Add([]byte(small("MTU=1\nDNS=a,b", "Endpoint=[::1]:1\nAllowedIPs=::/0")))
	f.Add([]byte("[Interface]\nPrivateKey=" + privateKey + "=\n[Peer\n=\n==\n#"))
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := Parse("w", content)
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "w:") {
					t.Fatalf("a problem has no place: %q", line)
				}
			}
			if strings.Contains(err.Error(), privateKey[:43]) {
				t.Fatalf("a key is shown: %v", err)
			}
			return
		}
		if len(c.Addresses) == 0 || len(c.Peers) == 0 || c.MTU == 0 {
			t.Fatalf("incomplete: %+v", c)
		}
		for _, p := range c.Peers {
			if p.Endpoint.IsZero() {
				continue
			}
			if again, err := endpoint(p.Endpoint.String()); err != nil || again != p.Endpoint {
				t.Fatalf("endpoint %v, %v", p.Endpoint, err)
			}
		}
		for line := range strings.Lines(c.UAPI()) {
			if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); !ok || key == "" || value == "" || strings.ContainsAny(value, "\n\r =") {
				t.Fatalf("line %q", line)
			}
		}
	})
}
