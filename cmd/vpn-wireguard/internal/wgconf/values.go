package wgconf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

var errUnknownKey = errors.New("is an unknown key in this section")

// repeatable are the keys whose values add up.
func repeatable(key string) bool {
	return key == "address" || key == "dns" || key == "allowedips"
}

// set sets a key of [Interface].
func (c *Config) set(key, value string) (err error) {
	switch key {
	case "privatekey":
		c.PrivateKey.key, err = parseKey(value)
	case "listenport":
		c.ListenPort, err = number[uint16](value, 16)
	case "address":
		err = c.address(value)
	case "dns":
		err = c.dns(value)
	case "mtu":
		if c.MTU, err = number[uint32](value, 16); c.MTU == 0 {
			c.MTU = DefaultMTU
		}
	case "table":
		err = c.table(value)
	case "fwmark":
		c.warn("FwMark is ignored: vpnproviderd keeps the sockets out of the tunnel by a mark of its own")
	case "preup", "postup", "predown", "postdown":
		err = errors.New("is refused: commands for root have no place in a VPN without root; remove the line")
	case "saveconfig":
		if value != "false" {
			err = errors.New("is refused: the file is never written; remove the line")
		}
	default:
		err = errUnknownKey
	}
	return err
}

func (c *Config) warn(text string) { c.Warnings = append(c.Warnings, text) }

// words are what wg-quick takes for a list: separated by commas, blanks, or both.
func words(value string) []string {
	return strings.FieldsFunc(value, func(c rune) bool { return c == ',' || unicode.IsSpace(c) })
}

func (c *Config) address(value string) error {
	items := words(value)
	if len(items) == 0 {
		return errors.New("is empty")
	}
	for _, item := range items {
		block, err := prefix(item)
		if err != nil {
			return err
		}
		c.Addresses = append(c.Addresses, block)
	}
	return nil
}

// dns takes addresses of servers, and domains.
func (c *Config) dns(value string) error {
	for _, item := range words(value) {
		if addr, err := netip.ParseAddr(item); err == nil {
			c.DNS = append(c.DNS, addr)
			continue
		}
		if !isName(item) {
			return fmt.Errorf("%s is neither an address nor a domain", quote(item))
		}
		c.Search = append(c.Search, item)
	}
	return nil
}

func (c *Config) table(value string) error {
	switch strings.ToLower(value) {
	case "off":
		c.NoRoutes = true
	case "auto":
	default:
		return errors.New("is refused: the table is vpnproviderd's; off and auto are possible")
	}
	return nil
}

// set sets a key of [Peer].
func (p *Peer) set(key, value string) (err error) {
	switch key {
	case "publickey":
		p.PublicKey, err = parseKey(value)
	case "presharedkey":
		p.PresharedKey.key, err = parseKey(value)
	case "allowedips":
		err = p.allow(value)
	case "endpoint":
		p.Endpoint, err = endpoint(value)
	case "persistentkeepalive":
		if strings.ToLower(value) != "off" {
			p.Keepalive, err = number[uint16](value, 16)
		}
	default:
		err = errUnknownKey
	}
	return err
}

// allow takes what wg does, which is separated by commas alone. Nothing at all
// is for a peer that may send nothing.
func (p *Peer) allow(value string) error {
	if value == "" {
		return nil
	}
	for item := range strings.SplitSeq(value, ",") {
		block, err := prefix(strings.TrimSpace(item))
		if err != nil {
			return err
		}
		p.AllowedIPs = append(p.AllowedIPs, block)
	}
	return nil
}

func number[T uint16 | uint32](value string, bits int) (T, error) {
	n, err := strconv.ParseUint(value, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("is not a number from 0 to %d", uint64(1)<<bits-1)
	}
	return T(n), nil
}

// prefix takes an address without a length as a single one.
func prefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%s is not an address or block, such as 10.0.0.0/24", quote(text))
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

func endpoint(text string) (Endpoint, error) {
	bad := fmt.Errorf("%s is not HOST:PORT or [IPv6]:PORT", quote(text))
	host, portText, err := net.SplitHostPort(text)
	if err != nil {
		return Endpoint{}, bad
	}
	port, err := number[uint16](portText, 16)
	if err != nil || port == 0 {
		return Endpoint{}, bad
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" || isName(host) {
		return Endpoint{host, port}, nil
	}
	return Endpoint{}, bad
}

// isName reports whether the text can be the name of a host or domain. It
// leaves the fine print to who resolves it.
func isName(text string) bool {
	return text != "" && len(text) <= 253 && text[0] != '.' && text[0] != '-' &&
		!strings.ContainsFunc(text, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
		})
}

// quote shows a value, unless a key could have got to a wrong place.
func quote(text string) string {
	const keyLength = 43 // without the final =
	run := 0
	for _, r := range text {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '+', r == '/':
			run++
		default:
			run = 0
		}
		if run == keyLength {
			return "this"
		}
	}
	return strconv.Quote(text)
}
