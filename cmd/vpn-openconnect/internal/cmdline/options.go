package cmdline

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

// option is one of openconnect's options, as of 9.01 and, where noted, later.
type option struct {
	short byte // 0: none
	value bool // takes one
	kind  kind
}

// options by long name. Those that a later openconnect brings are passed on
// unknown; what is known of them is only whether they have a =value.
func options() map[string]option {
	return map[string]option{
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
		"mca-key":           {0, true, plain},
		"mca-certificate":   {0, true, plain},
		"certificate":       {'c', true, plain},
		"sslkey":            {'k', true, plain},
		"mca-key-password":  {0, true, private},
		"cookie-on-stdin":   {0, false, private},
		"passwd-on-stdin":   {0, false, private},
		"dump-http-traffic": {0, false, private},
		"quiet":             {'q', false, quieting},
		"syslog":            {'l', false, quieting},
		"server":            {0, true, names},
		"config":            {0, true, file},

		"allow-insecure-crypto":  {0, false, plain},
		"authgroup":              {0, true, plain},
		"base-mtu":               {0, true, plain},
		"cafile":                 {0, true, plain},
		"cert-expire-warning":    {'e', true, plain},
		"compression":            {0, true, plain},
		"csd-user":               {0, true, plain},
		"csd-wrapper":            {0, true, plain},
		"deflate":                {'d', false, plain},
		"disable-ipv6":           {0, false, plain},
		"dtls-ciphers":           {0, true, plain},
		"dtls-local-port":        {0, true, plain},
		"dtls12-ciphers":         {0, true, plain},
		"external-browser":       {0, true, plain},
		"force-dpd":              {0, true, plain},
		"force-trojan":           {0, true, plain},
		"gnutls-priority":        {0, true, plain},
		"http-auth":              {0, true, plain},
		"juniper":                {0, false, plain},
		"key-password-from-fsid": {0, false, plain},
		"libproxy":               {0, false, plain},
		"local-hostname":         {0, true, plain},
		"mtu":                    {'m', true, plain},
		"no-cert-check":          {0, false, plain},
		"no-deflate":             {'D', false, plain},
		"no-dtls":                {0, false, plain},
		"no-external-auth":       {0, false, plain}, // 9.10
		"no-http-keepalive":      {0, false, plain},
		"no-passwd":              {0, false, plain},
		"no-proxy":               {0, false, plain},
		"no-system-trust":        {0, false, plain},
		"no-xmlpost":             {0, false, plain},
		"non-inter":              {0, false, plain},
		"openssl-ciphers":        {0, true, plain},
		"os":                     {0, true, plain},
		"passtos":                {0, false, plain},
		"pfs":                    {0, false, plain},
		"protocol":               {0, true, plain},
		"proxy-auth":             {0, true, plain},
		"queue-len":              {'Q', true, plain},
		"reconnect-timeout":      {0, true, plain},
		"resolve":                {0, true, plain},
		"servercert":             {0, true, plain},
		"sni":                    {0, true, plain}, // 9.10
		"timestamp":              {0, false, plain},
		"token-mode":             {0, true, plain},
		"user":                   {'u', true, plain},
		"useragent":              {0, true, plain},
		"usergroup":              {'g', true, plain},
		"verbose":                {'v', false, plain},
		"version-string":         {0, true, plain},
		"xmlconfig":              {'x', true, plain},
	}
}

// refusal says why a refused option cannot be.
func refusal(name string) string {
	switch name {
	case "background", "pid-file":
		return "the session lives as long as vpn-openconnect: let your shell or service manager put it into the background"
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
