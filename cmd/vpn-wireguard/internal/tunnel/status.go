package tunnel

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-wireguard/internal/wgconf"
)

// Status is what WireGuard tells of a tunnel. It holds no secrets.
type Status struct {
	Interface  string `json:"interface"`
	PublicKey  string `json:"publicKey"`
	ListenPort uint16 `json:"listenPort"`
	Peers      []Peer `json:"peers"`
}

// Peer is what WireGuard tells of a peer.
type Peer struct {
	PublicKey       wgconf.Key `json:"publicKey"`
	PresharedKey    bool       `json:"presharedKey"` // there is one
	Endpoint        string     `json:"endpoint,omitempty"`
	AllowedIPs      []string   `json:"allowedIPs"`
	LatestHandshake time.Time  `json:"latestHandshake,omitzero"`
	RxBytes         uint64     `json:"rxBytes"` // from the peer
	TxBytes         uint64     `json:"txBytes"`
	Keepalive       int        `json:"persistentKeepalive,omitempty"` // seconds
}

// Status of the tunnel now. It may be called from any goroutine.
func (t *Tunnel) Status() Status {
	text, err := t.wg.IpcGet()
	if err != nil {
		text = "" // not from a buffer in memory
	}
	s := parseStatus(text)
	slices.SortFunc(s.Peers, func(a, b Peer) int { return t.place(a) - t.place(b) })
	s.Interface, _ = t.tun.Name()
	s.PublicKey = t.config.PrivateKey.PublicKey().String()
	return s
}

// place of the peer in the file.
func (t *Tunnel) place(p Peer) int {
	return slices.IndexFunc(t.config.Peers, func(c wgconf.Peer) bool { return c.PublicKey == p.PublicKey })
}

// parseStatus reads wireguard-go's configuration protocol, leaving the secrets
// aside.
func parseStatus(text string) Status {
	s := Status{Peers: []Peer{}}
	p := &Peer{} // for lines before the first: there are none
	var seconds int64
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch key {
		case "listen_port":
			s.ListenPort = uint16(n)
		case "public_key":
			s.Peers = append(s.Peers, Peer{AllowedIPs: []string{}})
			p = &s.Peers[len(s.Peers)-1]
			_, _ = hex.Decode(p.PublicKey[:], []byte(value))
		case "preshared_key":
			p.PresharedKey = strings.Trim(value, "0") != ""
		case "endpoint":
			p.Endpoint = value
		case "allowed_ip":
			p.AllowedIPs = append(p.AllowedIPs, value)
		case "last_handshake_time_sec":
			seconds = n
		case "last_handshake_time_nsec":
			if seconds != 0 || n != 0 {
				p.LatestHandshake = time.Unix(seconds, n)
			}
		case "rx_bytes":
			p.RxBytes = uint64(n)
		case "tx_bytes":
			p.TxBytes = uint64(n)
		case "persistent_keepalive_interval":
			p.Keepalive = int(n)
		}
	}
	return s
}

// once says each thing once, until it forgets: wireguard-go says every few
// seconds that there is no network. Its methods may be called from any
// goroutine.
type once struct {
	say func(format string, args ...any)

	mu   sync.Mutex
	said map[string]bool
}

// mostSaid bounds what once remembers.
const mostSaid = 100

func (o *once) Say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	o.mu.Lock()
	known := o.said[text]
	if o.said == nil || len(o.said) == mostSaid {
		o.said = map[string]bool{}
	}
	o.said[text] = true
	o.mu.Unlock()
	if !known {
		o.say("%s", text)
	}
}

func (o *once) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.said = nil
}
