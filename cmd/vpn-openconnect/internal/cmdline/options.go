package cmdline

import "strings"

// kind is what an option of openconnect means to us.
type kind int

const (
	plain    kind = iota // passed on, and kept for the next time
	private              // passed on, never kept: a secret, or needs one on stdin
	quieting             // plain, and openconnect's output tells nothing any more
	names                // plain, its value is the server
	file                 // plain, its value is a file of more options
	refused              // see refusal
)

// option is one of openconnect's, as of 9.01; sni and no-external-auth are 9.10's.
type option struct {
	short byte // 0: none
	value bool // takes one
	kind  kind
}

// The plain options, with their letters.
const (
	plainFlags = `
	allow-insecure-crypto deflate,d disable-ipv6 juniper key-password-from-fsid libproxy
	no-cert-check no-deflate,D no-dtls no-external-auth no-http-keepalive no-passwd no-proxy
	no-system-trust no-xmlpost non-inter passtos pfs timestamp verbose,v`
	plainValues = `
	authgroup base-mtu cafile cert-expire-warning,e certificate,c compression csd-user csd-wrapper
	dtls-ciphers dtls-local-port dtls12-ciphers external-browser force-dpd force-trojan
	gnutls-priority http-auth local-hostname mca-certificate mca-key mtu,m openssl-ciphers os
	protocol proxy-auth queue-len,Q reconnect-timeout resolve servercert sni sslkey,k token-mode
	user,u useragent usergroup,g version-string xmlconfig,x`
)

// options by long name. Those that a later openconnect brings are passed on
// unknown; what is known of them is only whether they have a =value.
func options() map[string]option {
	all := map[string]option{
		"background":        {'b', false, refused},
		"setuid":            {'U', true, refused},
		"script":            {'s', true, refused},
		"script-tun":        {'S', false, refused},
		"interface":         {'i', true, refused},
		"pid-file":          {0, true, refused},
		"authenticate":      {0, false, refused},
		"cookieonly":        {0, false, refused},
		"printcookie":       {0, false, private},
		"cookie":            {'C', true, private},
		"form-entry":        {'F', true, private},
		"key-password":      {'p', true, private},
		"proxy":             {'P', true, private}, // may hold a password
		"token-secret":      {0, true, private},
		"gnutls-debug":      {0, true, private},
		"mca-key-password":  {0, true, private},
		"cookie-on-stdin":   {0, false, private},
		"passwd-on-stdin":   {0, false, private},
		"dump-http-traffic": {0, false, private},
		"quiet":             {'q', false, quieting},
		"syslog":            {'l', false, quieting},
		"server":            {0, true, names},
		"config":            {0, true, file},
	}
	for _, list := range [...]struct {
		items string
		value bool
	}{{plainFlags, false}, {plainValues, true}} {
		for item := range strings.FieldsSeq(list.items) {
			name, letter, _ := strings.Cut(item, ",")
			opt := option{value: list.value}
			if letter != "" {
				opt.short = letter[0]
			}
			all[name] = opt
		}
	}
	return all
}

// refusal says why a refused option cannot be.
func refusal(name string) string {
	switch name {
	case "background", "pid-file":
		return "the session lives as long as vpn-openconnect: run it with systemd-run --user, or with setsid"
	case "setuid":
		return "vpn-openconnect and openconnect run as you from the start"
	case "script", "script-tun":
		return "vpn-openconnect is the script: the daemon sets up the network"
	case "interface":
		return "the daemon names the interface"
	default:
		return "it makes no tunnel: run openconnect itself, which needs no privileges for that"
	}
}
