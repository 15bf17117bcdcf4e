package main

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// serverVariable makes the test's program a WireGuard server, with a
// serverConfig as its value. wireguard-go opens sockets whenever it likes, so
// it needs a process of its own in the server's namespace.
const serverVariable = "VPN_WIREGUARD_TEST_SERVER"

func TestMain(m *testing.M) {
	if config := os.Getenv(serverVariable); config != "" {
		fmt.Println(beServer([]byte(config)))
		os.Exit(1)
	}
	harness.Main(m)
}

type serverConfig struct {
	Interface string
	Key       string // hex
	Port      int
	Addresses []string
	Peer      string   // its public key, hex
	Allowed   []string // addresses of the peer
}

// beServer is wireguard-go as root on a TUN of its own. On SIGUSR1 it roams to
// the next port.
func beServer(text []byte) error {
	var c serverConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	dev, err := tun.CreateTUN(c.Interface, 1420)
	if err != nil {
		return err
	}
	wg := device.NewDevice(dev, conn.NewStdNetBind(), device.NewLogger(device.LogLevelError, ""))
	lines := []string{"private_key=" + c.Key, fmt.Sprintf("listen_port=%d", c.Port), "public_key=" + c.Peer}
	for _, block := range c.Allowed {
		lines = append(lines, "allowed_ip="+block)
	}
	if err := wg.IpcSet(strings.Join(lines, "\n")); err != nil {
		return err
	}
	if err := wg.Up(); err != nil {
		return err
	}
	commands := []string{"link set " + c.Interface + " up"}
	for _, a := range c.Addresses {
		commands = append(commands, "addr add "+a+" dev "+c.Interface)
	}
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	fmt.Println("ready")
	roam := make(chan os.Signal, 1)
	signal.Notify(roam, unix.SIGUSR1)
	for range roam {
		c.Port++
		if err := wg.IpcSet(fmt.Sprintf("listen_port=%d", c.Port)); err != nil {
			return err
		}
		wg.SendKeepalivesToPeersWithCurrentKeypair()
		fmt.Println("roamed to", c.Port)
	}
	return nil
}

// wgServer is a WireGuard server for the lab's user.
type wgServer struct {
	*harness.Process
	ns     *harness.Namespace
	config serverConfig
	key    *ecdh.PrivateKey
}

func newKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func inBase64(key []byte) string { return base64.StdEncoding.EncodeToString(key) }

// Addresses of the user in the tunnels.
const (
	tunnelIPv4 = "10.66.0.2"
	tunnelIPv6 = "fd66::2"
)

const serverPort = 51820

// startServer starts a server for the user in a namespace.
func (l *lab) startServer(t testing.TB, ns *harness.Namespace) *wgServer {
	t.Helper()
	s := &wgServer{ns: ns, key: newKey(t), config: serverConfig{
		Interface: "wg0",
		Port:      serverPort,
		Addresses: []string{"10.66.0.1/24", "fd66::1/64"},
		Peer:      hex.EncodeToString(l.key.PublicKey().Bytes()),
		Allowed:   []string{tunnelIPv4 + "/32", tunnelIPv6 + "/128"},
	}}
	s.config.Key = hex.EncodeToString(s.key.Bytes())
	s.start(t)
	return s
}

func (s *wgServer) start(t testing.TB) {
	t.Helper()
	text, err := json.Marshal(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.Process = s.ns.Start(t, harness.Command{Argv: []string{"/proc/self/exe"}, Env: []string{serverVariable + "=" + string(text)}})
	s.Await(t, "(?m)^ready$")
}

// peer is the section of a client's file.
func (s *wgServer) peer(host, allowed string, more ...string) string {
	lines := []string{
		"[Peer]", "PublicKey = " + inBase64(s.key.PublicKey().Bytes()), "AllowedIPs = " + allowed,
		"Endpoint = " + net.JoinHostPort(host, strconv.Itoa(serverPort)),
	}
	return strings.Join(append(lines, more...), "\n") + "\n"
}

// startEcho answers every datagram to port 7 of addresses of the server's
// namespace with where it came from.
func startEcho(t testing.TB, ns *harness.Namespace, addresses ...string) {
	t.Helper()
	for _, a := range addresses {
		c := ns.ListenPacket(t, "udp", netip.AddrPortFrom(netip.MustParseAddr(a), 7).String())
		go func() {
			buf := make([]byte, 2000)
			for {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return // the test has ended
				}
				_, _ = c.WriteTo([]byte(netip.MustParseAddrPort(from.String()).Addr().Unmap().String()), from)
			}
		}()
	}
}
