package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// inClear listens on both uplinks of the lab, and counts what is neither
// WireGuard's nor what keeps a network going.
func (l *lab) inClear(t testing.TB) (count func() int) {
	t.Helper()
	sniffers := []*harness.Sniffer{l.Clear(t), l.Router.Sniff(t, "r2")}
	return func() (n int) {
		t.Helper()
		for _, s := range sniffers {
			n += s.Count(t, func(p harness.Packet) bool {
				return !p.Sent && p.DstPort != serverPort && p.Protocol != unix.IPPROTO_ICMPV6
			})
		}
		return n
	}
}

// uplink makes the second uplink of the host the default one, or the first.
func (l *lab) uplink(t testing.TB, second bool) {
	t.Helper()
	if second {
		l.Host.IP(t, "route replace default via "+harness.SecondRouterIPv4+" dev h1", "route replace default via "+harness.SecondRouterIPv6+" dev h1")
		return
	}
	l.Host.IP(t, "route replace default via "+harness.RouterIPv4+" dev h0", "route replace default via "+harness.RouterIPv6+" dev h0")
}

// roaming is a lab with two uplinks and a full tunnel that is up.
func roaming(t testing.TB) (*lab, *harness.Process) {
	t.Helper()
	l := newLab(t)
	l.SecondUplink(t)
	l.before = l.Host.Snapshot(t, "/etc/resolv.conf")
	s := l.startServer(t, l.Server)
	file := l.file(t, "work.conf", 0o600, l.section(""), s.peer(harness.ServerIPv4, "0.0.0.0/0, ::/0"))
	up := l.start(t, "up", file)
	up.Await(t, "(?m)^work: connected$")
	return l, up
}

// download is a file that is long enough for the uplink to change meanwhile.
const (
	downloadBytes = 24 << 20
	downloadRate  = 4 << 20 // a second
)

// serveDownload serves the file slowly, and says how much was sent.
func (l *lab) serveDownload(t testing.TB) (url string, sum [sha256.Size]byte) {
	t.Helper()
	content := make([]byte, downloadBytes)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(content)
	server := &http.Server{ReadHeaderTimeout: harness.Timeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		const slice = downloadRate / 20
		for rest := content; len(rest) > 0; rest = rest[min(slice, len(rest)):] {
			if _, err := w.Write(rest[:min(slice, len(rest))]); err != nil {
				return
			}
			time.Sleep(time.Second / 20)
		}
	})}
	listener := l.Server.Listen(t, "tcp", insideIPv4+":8080")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return "http://" + insideIPv4 + ":8080/", sha256.Sum256(content)
}

// A download that runs while the uplink is switched, to another and back, and
// while its cable is out: it ends complete, on the connection with which it
// began, and not one packet is in clear.
func TestDownloadOutlivesUplinks(t *testing.T) {
	t.Parallel()
	l, up := roaming(t)
	url, want := l.serveDownload(t)
	clear := l.inClear(t)
	target := filepath.Join(l.run, "download")
	curl := l.Host.Start(t, harness.Command{UID: user, Argv: []string{"curl", "-sS", "--noproxy", "*", "--max-time", "90", "-o", target, url}})
	size := func() int64 {
		info, err := os.Stat(target)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	grows := func(what string) {
		t.Helper()
		before := size()
		harness.Eventually(t, harness.Timeout, what+": the download goes on", func() error {
			if now := size(); now < before+1<<20 {
				return fmt.Errorf("%d bytes, after %d", now, before)
			}
			return nil
		})
	}
	times := 0
	switched := func(what string, do func()) {
		t.Helper()
		begun := time.Now()
		times++
		do()
		up.Await(t, fmt.Sprintf(`(?s)(the network has changed, reconnecting.*work: connected.*){%d}`, times))
		t.Logf("%s: connected again after %v, at %d of %d bytes", what, time.Since(begun).Round(time.Millisecond), size(), downloadBytes)
		grows(what)
	}
	grows("at first")
	switched("another uplink", func() { l.uplink(t, true) })
	switched("the first again", func() { l.uplink(t, false) })
	switched("the cable out and in", func() {
		l.Router.IP(t, "link set r0 down")
		up.Await(t, "the network is gone")
		l.Router.IP(t, "link set r0 up", "addr add "+harness.RouterIPv6+"/64 dev r0 nodad")
	})
	select {
	case <-curl.Exited():
		t.Error("the download was over too soon: this tests nothing")
	default:
	}
	harness.Eventually(t, time.Minute, "the download is over", func() error {
		select {
		case <-curl.Exited():
			return nil
		default:
			return fmt.Errorf("%d of %d bytes", size(), downloadBytes)
		}
	})
	if code := codeOf(t, curl.Wait(t)); code != 0 {
		t.Errorf("curl: exit code %d: %s", code, curl.Output())
	}
	got, err := sumOf(target)
	if err != nil || got != want {
		t.Errorf("what came is not what was sent: %v", err)
	}
	if n := clear(); n != 0 {
		t.Errorf("%d packets in clear", n)
	}
}

func sumOf(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// A captive network: its gateway answers, and the server cannot be reached
// until somebody has logged in. Meanwhile nothing is in clear, and then it goes
// on by itself.
func TestCaptiveNetwork(t *testing.T) {
	t.Parallel()
	l, up := roaming(t)
	clear := l.inClear(t)
	l.Router.IP(t, "route add blackhole "+harness.ServerIPv4+"/32")
	l.uplink(t, true)
	up.Await(t, "the network has changed, reconnecting")
	up.Await(t, "no answer from "+harness.ServerIPv4)
	if got, err := l.Host.Fetch(t, "http://"+insideIPv4+"/"); err == nil {
		t.Errorf("a page came from %q", got)
	}
	if got := l.reports(t, "work")[0]; got.State != "reconnecting" {
		t.Errorf("status %+v", got)
	}
	before := clear()
	l.Host.Run(t, "ping", "-n", "-c1", "-W20", "-I", "h1", harness.SecondRouterIPv4) // the positive control, too
	if n := clear(); before != 0 || n != 1 {
		t.Errorf("%d packets in clear, and with a ping to the gateway %d", before, n)
	}
	l.Router.IP(t, "route del blackhole "+harness.ServerIPv4+"/32")
	up.Await(t, `(?s)reconnecting.*work: connected`)
	l.requireFrom(t, tunnelIPv4, insideIPv4)
	l.requireFrom(t, tunnelIPv6, insideIPv6)
	if n := clear(); n != 1 {
		t.Errorf("%d packets in clear, besides the ping", n-1)
	}
}

// The machine sleeps, which the client does not hold up, and wakes up in the
// same network and in another.
func TestSleep(t *testing.T) {
	t.Parallel()
	l, up := roaming(t)
	logind := harness.StartLogind(t, l.bus)
	clear := l.inClear(t)
	for i, elsewhere := range []bool{false, true} {
		if took := <-logind.Sleep(t); took > 2500*time.Millisecond { // the daemon waits for 3 s
			t.Errorf("the client held up the sleep for %v", took)
		}
		l.uplink(t, elsewhere)
		logind.Wake(t)
		harness.Eventually(t, harness.Timeout, "it is connected again", func() error {
			if strings.Count(up.Output(), "work: connected\n") < i+2 {
				return errors.New(up.Output())
			}
			return nil
		})
		l.requireFrom(t, tunnelIPv4, insideIPv4)
		l.requireFrom(t, tunnelIPv6, insideIPv6)
	}
	if n := clear(); n != 0 {
		t.Errorf("%d packets in clear", n)
	}
}
