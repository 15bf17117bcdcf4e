package system

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// descriptors counts those that the daemon has open.
func (m *machine) descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.daemon.Process().PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// requireDescriptors waits until the daemon has no more than that open.
func (m *machine) requireDescriptors(t testing.TB, most int) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, "the daemon's descriptors", func() error {
		if n := m.descriptors(t); n > most {
			list, _ := m.Host.Output(t, harness.Command{Argv: []string{"ls", "-l", fmt.Sprintf("/proc/%d/fd", m.daemon.Process().PID())}})
			return fmt.Errorf("%d are open, %d were before:\n%s", n, most, list)
		}
		return nil
	})
}

// status reads a number of the daemon's /proc/PID/status: KiB, or a count.
func (m *machine) status(t testing.TB, field string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.daemon.Process().PID()))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+)`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no %s in\n%s", field, text)
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// goroutines ends the daemon and counts the goroutines that it had.
func (m *machine) goroutines(t testing.TB) (n int, stacks string) {
	t.Helper()
	m.daemon.Process().Signal(unix.SIGQUIT)
	if err := m.daemon.Process().Wait(t); err == nil {
		t.Fatal("the daemon ended with success")
	}
	stacks = m.daemon.Process().Output()
	return len(regexp.MustCompile(`(?m)^goroutine \d+ `).FindAllString(stacks, -1)), stacks
}

// Calls that are wrong in every way, with descriptors: none of these stays
// open, and the daemon serves on.
func TestBadCalls(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session, _ := v.establish()
	bob := v.dial(t, harness.Bob)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	file := godbus.UnixFD(pair[0])
	wrong := dict{"x": godbus.MakeVariant(1)}
	calls := []func() *godbus.Call{
		func() *godbus.Call { return v.provider.on(session, "ProtectSocket", file) },
		func() *godbus.Call { return v.provider.on(session, "ProtectSocket", file, dict{}) },
		func() *godbus.Call { return v.provider.on(session, "ProtectSocket", file, wrong) },
		func() *godbus.Call { return v.provider.on(session, "ProtectSocket", wrong, file) },
		func() *godbus.Call {
			return v.provider.on(session, "ProtectSocket", file, dict{"x": godbus.MakeVariant(file)})
		},
		func() *godbus.Call { return v.provider.on(session, "AttachPacketChannel", file, dict{}) },
		func() *godbus.Call { return v.provider.on(session, "AttachPacketChannel", file, wrong) },
		func() *godbus.Call { return v.ui.on(session, "AttachPacketChannel", file, dict{}) },
		func() *godbus.Call { return bob.on(session, "AttachPacketChannel", file, dict{}) },
		func() *godbus.Call { return v.provider.on(wire.SessionRoot+"/999", "ProtectSocket", file, dict{}) },
		func() *godbus.Call {
			return v.provider.call(v.config, wire.SessionInterface+".ProtectSocket", file, dict{})
		},
		func() *godbus.Call {
			return v.provider.call("/nowhere", wire.SessionInterface+".ProtectSocket", file, dict{})
		},
		// The bus itself refuses these.
		func() *godbus.Call {
			return v.provider.on(session, "SetParameters", dict{"address": godbus.MakeVariant(file)})
		},
		func() *godbus.Call { return v.provider.manager("ListConfigs", file) },
		func() *godbus.Call { return v.provider.on(session, "ProtectSocket", file, file) },
	}
	fds := v.descriptors(t)
	const rounds = 40
	for range rounds {
		for i, call := range calls {
			if err := call().Err; err == nil {
				t.Errorf("call %d succeeded", i)
			}
		}
	}
	v.requireDescriptors(t, fds)
	v.ping(t, "1", includedIPv4)
	t.Logf("%d calls", rounds*len(calls))
}

// Sessions come and go while others look at the objects without a pause:
// afterwards the daemon has as many descriptors and goroutines as before, and
// about as much memory.
func TestCyclesLeaveNothing(t *testing.T) {
	t.Parallel()
	// The race detector keeps about 70 KiB a cycle of its own.
	opts, mayGrow := harness.DaemonOptions{Env: []string{"GOTRACEBACK=all"}}, 64<<10
	if soaking() {
		opts.Program, mayGrow = harness.PlainBinary(t, "vpnproviderd"), 8<<10
	}
	v := newHost(t).withDaemon(t, opts)
	v.cycles(5)
	few, _ := v.goroutines(t)
	v.startAgain(t)
	v.register(dict{})
	v.cycles(20)
	fds, threads, memory := v.descriptors(t), v.status(t, "Threads"), v.status(t, "VmRSS")
	n := times(500, 10000)
	for done := 0; done < n; done += 100 {
		v.cycles(100)
		progress(t, done, n)
		if soaking() && done%1000 == 0 {
			t.Logf("after %d cycles: descriptors %d, threads %d, resident %d KiB", done+100, v.descriptors(t), v.status(t, "Threads"), v.status(t, "VmRSS"))
		}
	}
	v.requireClean(t)
	v.requireDescriptors(t, fds)
	last := [...]int{v.descriptors(t), v.status(t, "Threads"), v.status(t, "VmRSS")}
	if grown := last[2] - memory; grown > mayGrow {
		t.Errorf("the daemon has grown by %d KiB", grown)
	}
	if last[1] > threads+30 { // a busy machine has more of them wait for a processor
		t.Errorf("%d threads, %d before", last[1], threads)
	}
	peak := v.status(t, "VmHWM")
	many, stacks := v.goroutines(t)
	figure(t, "connect cycles", "%d: descriptors %d, %d at the end; threads %d, %d; goroutines %d, %d; resident %d KiB, %d (at most %d)",
		n, fds, last[0], threads, last[1], few, many, memory, last[2], peak)
	if many > few+3 {
		t.Errorf("the daemon had %d goroutines, and with few cycles %d:\n%s", many, few, stacks)
	}
	v.daemon.Cleanup(t)
}

func (m *machine) withDaemon(t testing.TB, opts harness.DaemonOptions) *vpn {
	t.Helper()
	m.start(t, opts)
	return m.party(t, harness.Alice, app)
}

// cycles connects and disconnects, while three users introspect.
func (v *vpn) cycles(n int) {
	t := v.t
	t.Helper()
	stop := make(chan struct{})
	var watchers sync.WaitGroup
	defer func() {
		close(stop)
		watchers.Wait()
	}()
	for _, uid := range []uint32{harness.Alice, harness.Bob, 0} {
		c := v.dial(t, uid)
		watchers.Go(func() {
			defer c.Close()
			for {
				for _, path := range []godbus.ObjectPath{"/", wire.RootPath, wire.ConfigRoot, wire.SessionRoot, v.config} {
					select {
					case <-stop:
						return
					default:
						c.call(path, wire.IntrospectableInterface+".Introspect")
					}
				}
				if err := c.call(wire.RootPath, wire.ObjectManagerInterface+".GetManagedObjects").Err; err != nil {
					t.Errorf("uid %d: %v", uid, err)
				}
				c.arrived() // so that the signals do not pile up
			}
		})
	}
	for range n {
		v.establish()
		v.disconnect()
		v.provider.arrived()
		v.ui.arrived()
	}
}

// Calls that a client does not wait for are served in their order.
func TestPipelinedCalls(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session := v.connect()
	var calls []<-chan *godbus.Call
	for i := range 12 {
		set := fullTunnel()
		set["mtu"] = godbus.MakeVariant(uint32(1300 + i))
		calls = append(calls, v.provider.begin(session, "SetParameters", set))
		if i == 5 {
			calls = append(calls, v.provider.begin(session, "NotifyConnectionStateChanged", wire.NotifyConnected, dict{}))
		}
	}
	for _, done := range calls {
		v.provider.must(<-done)
	}
	if mtu := v.ui.property(session, "MTU"); mtu != uint32(1311) {
		t.Errorf("MTU %v is not the last one", mtu)
	}
	v.requireState(wire.StateConnected)

	program := v.program()
	calls = nil
	const packets = 100 // a system bus lets 128 calls wait for their answers
	for i := range packets {
		calls = append(calls, v.provider.begin(session, "SendPacket", datagram(includedIPv4, tunnelIPv4, fmt.Sprint(i))))
	}
	for i := range packets {
		if got := program.next(0); got != fmt.Sprint(i) {
			t.Fatalf("packet %s arrived, want %d", got, i)
		}
	}
	for _, done := range calls {
		v.provider.must(<-done)
	}

	// More than may be in flight: the excess is refused at once, the rest served.
	v.ui.must(v.ui.on(v.config, "Disconnect", dict{}))
	refused, served := 0, 0
	calls = nil
	for range 50 {
		calls = append(calls, v.ui.begin(v.config, "Connect", dict{}), v.ui.begin(v.config, "Disconnect", dict{}))
	}
	for _, done := range calls {
		switch call := <-done; errorName(call.Err) {
		case "":
			served++
		case wire.ErrLimitExceeded:
			refused++
		case wire.ErrFailed: // cancelled by the Disconnect behind it
			if !strings.Contains(call.Err.Error(), "cancelled") {
				t.Error(call.Err)
			}
		default:
			t.Error(call.Err)
		}
	}
	if served < 16 || refused == 0 {
		t.Errorf("%d calls were served and %d refused", served, refused)
	}
	v.disconnect()
	v.requireClean(t)
}
