package container_test

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	wgPort        = 51820
	tunnelAddress = "10.66.0.2" // the user's
)

// wgVariable makes the test's program a WireGuard server, with the private key
// and the user's public key, in hex, as its value: wireguard-go opens sockets
// whenever it likes, so it needs a process of its own in its namespace.
const wgVariable = "CONTAINER_TEST_WIREGUARD"

func TestMain(m *testing.M) {
	if keys, ok := os.LookupEnv(wgVariable); ok {
		fmt.Fprintln(os.Stderr, beWireGuard(keys))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func beWireGuard(keys string) error {
	private, peer, _ := strings.Cut(keys, " ")
	dev, err := tun.CreateTUN("wg0", 1420)
	if err != nil {
		return err
	}
	wg := device.NewDevice(dev, conn.NewStdNetBind(), device.NewLogger(device.LogLevelError, ""))
	err = wg.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nallowed_ip=%s/32\n", private, wgPort, peer, tunnelAddress))
	if err != nil {
		return err
	}
	if err := wg.Up(); err != nil {
		return err
	}
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader("link set wg0 up\naddr add 10.66.0.1/24 dev wg0\naddr add " + vpnDNS + "/32 dev wg0\n")
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	fmt.Fprintln(os.Stderr, "ready")
	select {} // until killed
}

// wgServer is a WireGuard server for one user.
type wgServer struct {
	*harness.Process
	userKey, publicKey string // base64, as in files
}

func startWireGuard(t *testing.T, ns *harness.Namespace) *wgServer {
	t.Helper()
	own, user := newKey(t), newKey(t)
	s := &wgServer{
		userKey:   base64.StdEncoding.EncodeToString(user.Bytes()),
		publicKey: base64.StdEncoding.EncodeToString(own.PublicKey().Bytes()),
	}
	s.Process = ns.Start(t, harness.Command{
		Argv: []string{"/proc/self/exe"},
		Env:  []string{wgVariable + "=" + hex.EncodeToString(own.Bytes()) + " " + hex.EncodeToString(user.PublicKey().Bytes())},
	})
	s.Await(t, "(?m)^ready$")
	return s
}

func newKey(t *testing.T) *ecdh.PrivateKey {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
