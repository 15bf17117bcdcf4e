package container_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	flowPort = 4242
	behind6  = "2001:db8:8::8"
	uplink6  = "2001:db8:1::1"
)

// flowing is a machine of which all traffic goes into Alice's tunnel, a program
// that sends 1,000 packets a second and family, and who counts those in clear.
type flowing struct {
	*machine
	app             *container.Process
	session, config string
	sender          *sender
}

func newFlowing(t *testing.T, p programs) *flowing {
	t.Helper()
	m := newMachine(t, p)
	m.Run(t, "ip", "addr", "add", "2001:db8:1::2/64", "dev", "eth0", "nodad")
	m.Run(t, "ip", "route", "add", "default", "via", uplink6)
	f := &flowing{machine: m}
	f.connect()
	f.parameters("10.1.0.2")
	f.sender = startSender(t, m.Container)
	f.requireFlow()
	return f
}

// connect starts the app, and its session.
func (f *flowing) connect() {
	f.t.Helper()
	f.app = f.client("flow", "messages")
	if _, err := fmt.Sscanf(f.app.Output(), "session %s %s", &f.session, &f.config); err != nil {
		f.t.Fatal(err)
	}
}

// parameters sets a full tunnel of both families, and waits until it is there.
func (f *flowing) parameters(address string) {
	f.t.Helper()
	f.tell(f.app, "applied", client.Parameters{
		Addresses:     []netip.Prefix{netip.MustParsePrefix(address + "/32"), netip.MustParsePrefix("fd00::2/128")},
		InclusionList: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
		DNSServers:    []netip.Addr{netip.MustParseAddr(vpnDNS)},
	})
}

// counted are the packets that the app got so far, and the longest time without
// one since it was asked last.
func (f *flowing) counted() (packets [2]int64, gap time.Duration) {
	f.t.Helper()
	var text string
	if _, err := fmt.Sscanf(f.answer(f.app, "count", "counted "), "counted %d %d %s", &packets[0], &packets[1], &text); err != nil {
		f.t.Fatal(err)
	}
	gap, err := time.ParseDuration(text)
	if err != nil {
		f.t.Fatal(err)
	}
	return packets, gap
}

// requireFlow waits until packets of both families go through the tunnel and
// come back.
func (f *flowing) requireFlow() (gap time.Duration) {
	f.t.Helper()
	before, gap := f.counted()
	back := [2]int64{f.sender.back[0].Load(), f.sender.back[1].Load()}
	harness.Eventually(f.t, harness.Timeout, "packets go through the tunnel and come back", func() error {
		now, longest := f.counted()
		gap = max(gap, longest)
		for i := range now {
			if now[i] < before[i]+50 || f.sender.back[i].Load() < back[i]+50 {
				return fmt.Errorf("family %d: %d packets in the tunnel after %d, %d came back after %d",
					i, now[i], before[i], f.sender.back[i].Load(), back[i])
			}
		}
		return nil
	})
	return gap
}

// requireSame wants the session, as it was.
func (f *flowing) requireSame() {
	f.t.Helper()
	if f.t.Failed() {
		return
	}
	out := f.RunAs(f.t, container.Alice, "busctl", "call", "org.vpnprovider1", "/org/vpnprovider1", "org.vpnprovider1.Manager", "ListSessions")
	if want := fmt.Sprintf("a(oos) 1 %q %q \"vpn0\"\n", f.session, f.config); out != want {
		f.t.Errorf("sessions: %s, want %s", out, want)
	}
	out = f.RunAs(f.t, container.Alice, "busctl", "get-property", "org.vpnprovider1", f.config, "org.vpnprovider1.Config", "State")
	if out != "s \"connected\"\n" {
		f.t.Errorf("state %s", out)
	}
	for _, bad := range []string{"message ", "over: ", "channel ended"} {
		if strings.Contains(f.app.Output(), bad) {
			f.t.Errorf("the app: %s", f.app.Output())
		}
	}
}

// requireCovered wants no packet in clear.
func (f *flowing) requireCovered(what string) {
	f.t.Helper()
	if n := f.inClear(); n != 0 {
		f.t.Errorf("%s: %d packets in clear", what, n)
	}
}

func (f *flowing) inClear() int {
	f.t.Helper()
	return f.wire.Count(f.t, func(p harness.Packet) bool { return p.DstPort == flowPort })
}

func (f *flowing) pid() string {
	f.t.Helper()
	return strings.TrimSpace(f.Run(f.t, "systemctl", "show", "-P", "MainPID", "vpnproviderd"))
}

// awaitAnother waits until another daemon serves.
func (f *flowing) awaitAnother(pid string) {
	f.t.Helper()
	harness.Eventually(f.t, harness.Timeout, "another daemon serves", func() error {
		out := f.Run(f.t, "systemctl", "show", "-P", "MainPID", "-P", "ActiveState", "vpnproviderd")
		if strings.Contains(out, pid+"\n") || !strings.Contains(out, "active\n") || strings.Contains(out, "activating") {
			return errors.New(out)
		}
		return nil
	})
}

// sender sends to addresses behind the tunnel from the container, whatever
// becomes of it, and counts what comes back.
type sender struct{ sent, back [2]atomic.Int64 }

func startSender(t *testing.T, c *container.Container) *sender {
	t.Helper()
	s := &sender{}
	quit := make(chan struct{})
	var running sync.WaitGroup
	for i, to := range []unix.Sockaddr{
		&unix.SockaddrInet4{Port: flowPort, Addr: netip.MustParseAddr(behind).As4()},
		&unix.SockaddrInet6{Port: flowPort, Addr: netip.MustParseAddr(behind6).As16()},
	} {
		fd, err := socketIn(c, []int{unix.AF_INET, unix.AF_INET6}[i])
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			defer unix.Close(fd)
			s.run(i, fd, to, quit)
		})
	}
	t.Cleanup(func() {
		close(quit)
		running.Wait()
	})
	return s
}

// socketIn makes a UDP socket in the network of the container.
func socketIn(c *container.Container, family int) (fd int, err error) {
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", c.Leader), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(ns)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and it ends with the goroutine
		if err = unix.Setns(ns, unix.CLONE_NEWNET); err == nil {
			fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		}
	}()
	<-done
	return fd, err
}

func (s *sender) run(family, fd int, to unix.Sockaddr, quit <-chan struct{}) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	begun, answer := time.Now(), make([]byte, 100)
	for {
		select {
		case <-quit:
			return
		case <-tick.C:
		}
		for due := int64(time.Since(begun) / time.Millisecond); s.sent[family].Load() < due; s.sent[family].Add(1) {
			_ = unix.Sendto(fd, []byte("secret"), 0, to) // refused is as good as dropped
		}
		for {
			if _, _, err := unix.Recvfrom(fd, answer, 0); err != nil {
				break
			}
			s.back[family].Add(1)
		}
	}
}

// TestRestart has the daemon restarted, killed and stopped under a session.
func TestRestart(t *testing.T) {
	harness.Require(t, "systemd-nspawn", "mmdebstrap")
	p := programs{
		daemon: container.Build(t, "./cmd/vpnproviderd"),
		client: container.Build(t, "./test/container/testclient"),
	}
	t.Run("session goes on", func(t *testing.T) { testGoesOn(t, newFlowing(t, p)) })
	t.Run("app dies meanwhile", func(t *testing.T) { testAppDiesMeanwhile(t, newFlowing(t, p)) })
	t.Run("polkit hangs", func(t *testing.T) { testWatchdog(t, newFlowing(t, p)) })
}

const (
	restart = "systemctl restart vpnproviderd"
	kill    = "systemctl kill --signal=KILL vpnproviderd"
)

// testGoesOn: restarts and kills, at random moments, also of updates and of the
// start itself, cost neither the session nor a packet's cover. A stop ends all.
func testGoesOn(t *testing.T, f *flowing) {
	t.Helper()
	f.interrupted("restart", 4, func() { f.Run(t, "sh", "-c", restart) })
	f.interrupted("kill -9", 4, func() { f.Run(t, "sh", "-c", kill) })
	f.interrupted("restarts during updates", 3, func() { f.during(restart) })
	f.interrupted("kills during updates", 4, func() { f.during(kill) })
	f.interrupted("kills one after the other", 2, func() {
		for range 4 {
			f.Run(t, "sh", "-c", kill)
			time.Sleep(100*time.Millisecond + rand.N(80*time.Millisecond)) // chance: it may be up, or starting
		}
	})
	if out := f.Run(t, "resolvectl", "dns", "vpn0"); !strings.Contains(out, vpnDNS) {
		t.Errorf("the DNS is %s", out)
	}

	f.Run(t, "systemctl", "stop", "vpnproviderd")
	f.app.Await(t, `message disconnected "shutdown"`)
	f.requireNothing()
	if out := f.Run(t, "sh", "-c", "systemctl show --property=ActiveState,NFileDescriptorStore,Result vpnproviderd | sort; nft list tables"); out != "ActiveState=inactive\nNFileDescriptorStore=0\nResult=success\n" {
		t.Errorf("after the stop:\n%s", out)
	}
}

// interrupted does something to the daemon n times, at random moments, and wants
// the session to go on each time.
func (f *flowing) interrupted(what string, n int, do func()) {
	f.t.Helper()
	var longest time.Duration
	before, _ := f.counted()
	sent := f.sender.sent[0].Load()
	for range n {
		pid := f.pid()
		time.Sleep(rand.N(30 * time.Millisecond)) // chance, not synchronisation
		do()
		f.awaitAnother(pid)
		longest = max(longest, f.requireFlow())
		f.requireSame()
	}
	after, _ := f.counted()
	f.t.Logf("%s, %d times: %d of %d packets through the tunnel, the longest gap %s, %d in clear",
		what, n, after[0]-before[0], f.sender.sent[0].Load()-sent, longest, f.inClear())
	f.requireCovered(what)
}

// during runs a command while the app updates its parameters: what the daemon
// cannot answer any more, the next one does.
func (f *flowing) during(command string) {
	f.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(rand.N(40 * time.Millisecond)) // chance, not synchronisation
		_, _ = f.Output(container.Command{Argv: []string{"sh", "-c", command}})
	}()
	for i, running := 0, true; running; i++ {
		f.parameters([]string{"10.1.0.3", "10.1.0.2"}[i%2])
		select {
		case <-done:
			running = false
		default:
		}
	}
	f.parameters("10.1.0.2")
}

// testAppDiesMeanwhile: a session whose app is gone when the daemon comes back
// ends, and nothing is left of it.
func testAppDiesMeanwhile(t *testing.T, f *flowing) {
	t.Helper()
	f.WriteFile(t, "/run/systemd/system/vpnproviderd.service.d/slow.conf", "[Service]\nRestartSec=2s\n", 0o644)
	f.Run(t, "systemctl", "daemon-reload")
	f.Run(t, "sh", "-c", kill+"; pkill -KILL -x testclient")
	f.requireCovered("while the daemon is away")
	f.requireNothing()
	harness.Eventually(t, harness.Timeout, "the session has failed, and nothing of it is kept", func() error {
		config := f.RunAs(t, container.Alice, "busctl", "get-property", "org.vpnprovider1", f.config, "org.vpnprovider1.Config", "State", "FailureReason")
		kept := f.Run(t, "systemctl", "show", "-P", "NFileDescriptorStore", "vpnproviderd")
		if config != "s \"failed\"\ns \"provider gone\"\n" || kept != "2\n" {
			return fmt.Errorf("the config is %s, %s descriptors are kept", config, kept)
		}
		return nil
	})
	// And there can be another one, which goes on before its parameters, too.
	f.connect()
	pid := f.pid()
	f.Run(t, "sh", "-c", kill)
	f.awaitAnother(pid)
	f.parameters("10.1.0.2")
	f.requireFlow()
	f.requireSame()
}

// testWatchdog: that a person takes long, or that polkit does, is not taken
// for a daemon that hangs.
func testWatchdog(t *testing.T, f *flowing) {
	t.Helper()
	f.WriteFile(t, "/run/systemd/system/vpnproviderd.service.d/watchdog.conf", "[Service]\nWatchdogSec=3s\n", 0o644)
	f.Run(t, "systemctl", "daemon-reload")
	f.Run(t, "sh", "-c", restart)
	f.requireFlow()
	pid := f.pid()
	f.Run(t, "systemctl", "kill", "--signal=STOP", "polkit")
	defer f.Run(t, "systemctl", "kill", "--signal=CONT", "polkit")
	// It takes as long as the daemon gives polkit.
	out, err := f.Output(container.Command{Argv: []string{
		"busctl", "--allow-interactive-authorization=yes", "call", "org.vpnprovider1", "/org/vpnprovider1", "org.vpnprovider1.Manager",
		"CreateConfig", "ssa{sv}", "com.example.Flow", "Other", "0",
	}, User: container.Bob})
	if err == nil || !strings.Contains(out, "polkit did not answer") {
		t.Errorf("%v: %s", err, out)
	}
	if now := f.pid(); now != pid {
		t.Errorf("the daemon was restarted")
	}
	f.requireFlow()
	f.requireSame()
}
