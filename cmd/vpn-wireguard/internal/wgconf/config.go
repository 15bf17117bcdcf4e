// Package wgconf reads WireGuard configurations as wg-quick(8) has them.
package wgconf

import (
	"crypto/ecdh"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// DefaultMTU is what leaves room for WireGuard's headers on an Ethernet, over
// IPv4 and IPv6.
const DefaultMTU = 1420

// Config is what a file says.
type Config struct {
	PrivateKey Secret
	ListenPort uint16 // 0: any
	Addresses  []netip.Prefix
	DNS        []netip.Addr
	Search     []string // domains
	MTU        uint32   // bytes
	NoRoutes   bool     // Table = off
	Peers      []Peer

	// Warnings are sentences about what is ignored.
	Warnings []string
}

// Peer is one of the other ends.
type Peer struct {
	PublicKey    Key
	PresharedKey Secret // zero: none
	AllowedIPs   []netip.Prefix
	Endpoint     Endpoint
	Keepalive    uint16 // seconds, 0: off
}

// Endpoint is where a peer is; the zero value says that the peer finds us.
type Endpoint struct {
	Host string // a name or an address
	Port uint16
}

// IsZero reports whether there is none.
func (e Endpoint) IsZero() bool { return e.Host == "" }

// Addr is the address that Host is; not valid where it is a name.
func (e Endpoint) Addr() netip.Addr {
	addr, _ := netip.ParseAddr(e.Host)
	return addr.Unmap()
}

func (e Endpoint) String() string {
	return net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
}

// Key is a public key.
type Key [32]byte

// String is the key as files have it.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Hex is the key as wireguard-go's configuration protocol has it.
func (k Key) Hex() string { return hex.EncodeToString(k[:]) }

// MarshalText implements encoding.TextMarshaler.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Key) UnmarshalText(text []byte) (err error) {
	*k, err = parseKey(string(text))
	return err
}

// Secret is a private or preshared key. Whatever prints it, hides it.
type Secret struct{ key Key }

// Format implements fmt.Formatter.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(hidden)")) }

// IsZero reports whether there is none.
func (s Secret) IsZero() bool { return s.key == Key{} }

// PublicKey is that of the private key.
func (s Secret) PublicKey() Key {
	private, err := ecdh.X25519().NewPrivateKey(s.key[:])
	if err != nil {
		return Key{} // not with 32 bytes
	}
	return Key(private.PublicKey().Bytes())
}

var errNotKey = errors.New("is not a key, which has 44 characters of base64")

func parseKey(text string) (Key, error) {
	bytes, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(bytes) != len(Key{}) {
		return Key{}, errNotKey
	}
	return Key(bytes), nil
}

// UAPI is the configuration in wireguard-go's protocol, the endpoints aside.
// It holds the keys.
func (c Config) UAPI() string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	line("private_key", c.PrivateKey.key.Hex())
	line("listen_port", c.ListenPort)
	line("replace_peers", true)
	for _, p := range c.Peers {
		line("public_key", p.PublicKey.Hex())
		if !p.PresharedKey.IsZero() {
			line("preshared_key", p.PresharedKey.key.Hex())
		}
		line("persistent_keepalive_interval", p.Keepalive)
		for _, block := range p.AllowedIPs {
			line("allowed_ip", block)
		}
	}
	return b.String()
}
