package harness

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Web is a web server that answers every request with the address that it came
// from, and a newline.
type Web struct {
	mu      sync.Mutex
	remotes []netip.Addr
}

// StartWeb starts a web server on all addresses of the namespace, at the port.
func StartWeb(t testing.TB, ns *Namespace, port uint16) *Web {
	t.Helper()
	w := &Web{}
	server := &http.Server{Handler: w, ReadHeaderTimeout: Timeout}
	listener := ns.Listen(t, "tcp", fmt.Sprintf("[::]:%d", port))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // until it is closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return w
}

// ServeHTTP implements http.Handler.
func (w *Web) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	remote := netip.MustParseAddrPort(r.RemoteAddr).Addr().Unmap()
	w.mu.Lock()
	w.remotes = append(w.remotes, remote)
	w.mu.Unlock()
	fmt.Fprintln(rw, remote)
}

// Remotes are the addresses that requests came from, in order.
func (w *Web) Remotes() []netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.remotes)
}

// Fetch gets an http URL with a numeric host from the namespace, on a new
// connection, and returns the body without its last newline.
func (n *Namespace) Fetch(t testing.TB, url string) (string, error) {
	t.Helper()
	out, err := n.Output(t, Command{Argv: []string{"curl", "-sS", "--noproxy", "*", "--max-time", "10", url}, UID: Alice})
	return strings.TrimSpace(out), err
}

// StartDNS starts a name server (dnsmasq) at an IPv4 address of the namespace,
// which knows the names and refuses all others.
func StartDNS(t testing.TB, ns *Namespace, address string, names map[string]string) *Process {
	t.Helper()
	Require(t, "dnsmasq")
	argv := []string{
		"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--group=root", "--pid-file=",
		"--log-queries", "--log-facility=-", "--bind-interfaces", "--listen-address=" + address,
	}
	for name, addr := range names {
		argv = append(argv, "--host-record="+name+","+addr)
	}
	// The address may be one of a block that is local as a whole; dnsmasq wants
	// it on an interface.
	ns.IP(t, "addr add "+address+"/32 dev lo")
	p := ns.Start(t, Command{Argv: argv})
	Eventually(t, Timeout, "the name server answers", func() error {
		conn, err := ns.Dial("tcp", net.JoinHostPort(address, "53"), time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return p
}
