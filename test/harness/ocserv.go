package harness

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// OCServOptions say what the VPN server tells its clients. All are optional.
type OCServOptions struct {
	// Network and Network6 are what clients get their addresses from:
	// 10.99.0.0/24 where both are empty.
	Network, Network6 string

	// Routes go through the tunnel and NoRoutes do not. No Routes: everything
	// goes through it.
	Routes, NoRoutes []string

	DNS      []string
	SplitDNS []string // only these domains are resolved by DNS
	Domain   string   // the default search domain
	MTU      int      // 0 for the server's choice
	NoUDP    bool     // TLS only, no DTLS
}

// OCServ is a real AnyConnect-compatible VPN server.
type OCServ struct {
	// URL, User, Password and Pin (of the certificate) are what a client needs.
	URL, User, Password, Pin string

	*Process
}

// StartOCServ starts ocserv at ServerIPv4, port 443, in the namespace.
func StartOCServ(t testing.TB, ns *Namespace, opts OCServOptions) *OCServ {
	t.Helper()
	Require(t, "ocserv", "ocpasswd", "openssl")
	dir := TempDir(t)
	s := &OCServ{URL: "https://" + ServerIPv4, User: "alice", Password: "wonderland"}
	path := func(name string) string { return filepath.Join(dir, name) }

	ns.Run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
		"-subj", "/CN="+ServerIPv4, "-addext", "subjectAltName=IP:"+ServerIPv4, "-keyout", path("key.pem"), "-out", path("cert.pem"))
	s.Pin = "pin-sha256:" + strings.TrimSpace(ns.Run(t, "sh", "-c",
		"openssl x509 -in "+path("cert.pem")+" -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | openssl enc -base64"))
	out, err := ns.Output(t, Command{Argv: []string{"ocpasswd", "-c", path("passwd"), s.User}, Stdin: s.Password + "\n" + s.Password + "\n"})
	if err != nil {
		t.Fatalf("ocpasswd: %v\n%s", err, out)
	}
	if err := os.WriteFile(path("ocserv.conf"), []byte(ocservConfig(dir, opts)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Process = ns.Start(t, Command{Argv: []string{"ocserv", "--foreground", "--debug=2", "--config=" + path("ocserv.conf")}, Contained: true})
	Eventually(t, Timeout, "ocserv listens", func() error {
		select {
		case <-s.exited:
			t.Fatalf("ocserv ended (%v):\n%s", s.err, s.Output())
		default:
		}
		conn, err := ns.Dial("tcp", net.JoinHostPort(ServerIPv4, "443"), Timeout)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return s
}

// OpenConnect returns the arguments that let openconnect log in, the password
// on its standard input. Options of the caller come before.
func (s *OCServ) OpenConnect(options ...string) []string {
	return append(options, "--user="+s.User, "--servercert="+s.Pin, "--passwd-on-stdin", "--non-inter", s.URL)
}

func ocservConfig(dir string, opts OCServOptions) string {
	var b strings.Builder
	set := func(key string, values ...string) {
		for _, v := range values {
			fmt.Fprintf(&b, "%s = %s\n", key, v)
		}
	}
	set("auth", `"plain[passwd=`+filepath.Join(dir, "passwd")+`]"`)
	set("listen-host", ServerIPv4)
	set("tcp-port", "443")
	if !opts.NoUDP {
		set("udp-port", "443")
	}
	set("run-as-user", "root")
	set("run-as-group", "root")
	set("socket-file", filepath.Join(dir, "s"))
	set("server-cert", filepath.Join(dir, "cert.pem"))
	set("server-key", filepath.Join(dir, "key.pem"))
	set("isolate-workers", "false") // its system call filter does not know every kernel
	set("max-clients", "16")
	set("max-same-clients", "16")
	set("keepalive", "300")
	set("dpd", "60")
	set("try-mtu-discovery", "false")
	set("use-occtl", "false")
	set("device", "vpns")
	set("predictable-ips", "true")
	set("ping-leases", "false")
	set("cisco-client-compat", "true")
	set("dtls-legacy", "true")
	// Logins from one address, one after the other, are what tests do.
	set("max-ban-score", "0")
	set("rate-limit-ms", "0")

	if opts.Network == "" && opts.Network6 == "" {
		opts.Network = "10.99.0.0/24"
	}
	if opts.Network != "" {
		set("ipv4-network", opts.Network)
	}
	if opts.Network6 != "" {
		set("ipv6-network", opts.Network6)
	}
	if len(opts.Routes) == 0 {
		opts.Routes = []string{"default"}
	}
	set("route", opts.Routes...)
	set("no-route", opts.NoRoutes...)
	set("dns", opts.DNS...)
	set("split-dns", opts.SplitDNS...)
	if opts.Domain != "" {
		set("default-domain", opts.Domain)
	}
	if opts.MTU != 0 {
		set("mtu", fmt.Sprint(opts.MTU))
	}
	return b.String()
}
