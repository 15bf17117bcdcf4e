package tun_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
	"github.com/vpnprovider/vpnproviderd/routing/rtnl"
	"github.com/vpnprovider/vpnproviderd/tun"
	"github.com/vpnprovider/vpnproviderd/tun/vnet"
)

// steps are those of opening a device where the kernel refuses nothing.
func steps() []string {
	return []string{"queue", "reopen", "mark", "persist", "attach", "offload all", "end persistence", "unmark"}
}

var errForced = errors.New("forced")

// failing has some steps fail.
func failing(steps ...string) func(string, func() error) error {
	return func(step string, do func() error) error {
		if slices.Contains(steps, step) {
			return errForced
		}
		return do()
	}
}

// tunFlags asks the kernel what the descriptor is.
func tunFlags(tb testing.TB, d *tun.Device) uint16 {
	tb.Helper()
	raw, err := d.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	request, err := unix.NewIfreq("")
	if err != nil {
		tb.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, request) })
	if err != nil {
		tb.Fatal(err)
	}
	return request.Uint16()
}

func TestOpenSteps(t *testing.T) {
	namespace(t)
	var seen []string
	d, err := tun.OpenBy("steps0", func(step string, do func() error) error {
		seen = append(seen, step)
		return do()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if fmt.Sprint(seen) != fmt.Sprint(steps()) {
		t.Errorf("steps %v", seen)
	}
	if flags := tunFlags(t, d); flags != unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR {
		t.Errorf("flags %#x", flags)
	}
	if d.Offload() != vnet.OffloadAll {
		t.Errorf("offload %d", d.Offload())
	}
	l := link(t, "steps0")
	if l.Attrs().Alias != "" || l.Attrs().NumTxQueues != 1 || l.Attrs().TxQLen != tun.TxQueueLen {
		t.Errorf("alias %q, %d queues of %d", l.Attrs().Alias, l.Attrs().NumTxQueues, l.Attrs().TxQLen)
	}
	if device, ok := l.(*netlink.Tuntap); !ok || !device.NonPersist || device.Owner != 0 || device.Group != 0 {
		t.Errorf("%+v", l)
	}
}

// What the kernel refuses costs speed at most, or the device; then nothing is
// left of it.
func TestOpenWhereTheKernelRefuses(t *testing.T) {
	namespace(t)
	awaitNoDescriptors(t)
	for name, c := range map[string]struct {
		fails []string
		want  vnet.Offload
		gone  bool
	}{
		"short queue":               {fails: []string{"queue"}, gone: true},
		"second descriptor":         {fails: []string{"reopen"}, want: vnet.NoOffload},
		"alias":                     {fails: []string{"mark"}, want: vnet.NoOffload},
		"persistence":               {fails: []string{"persist"}, want: vnet.NoOffload},
		"header":                    {fails: []string{"attach"}, want: vnet.NoOffload},
		"header, and again":         {fails: []string{"attach", "attach plain"}, gone: true},
		"super-packets of UDP":      {fails: []string{"offload all"}, want: vnet.OffloadTCP},
		"super-packets":             {fails: []string{"offload all", "offload"}, want: vnet.OffloadTCP},
		"end of persistence":        {fails: []string{"end persistence"}, gone: true},
		"removal of the alias":      {fails: []string{"unmark"}, gone: true},
		"header, and the way back":  {fails: []string{"attach", "end persistence"}, gone: true},
		"header, and another alias": {fails: []string{"attach", "unmark"}, gone: true},
	} {
		for range 20 {
			d, err := tun.OpenBy("refuse0", failing(c.fails...))
			if c.gone {
				if !errors.Is(err, errForced) {
					t.Errorf("%s: %v", name, err)
				}
			} else {
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				header := tunFlags(t, d)&unix.IFF_VNET_HDR != 0
				if d.Offload() != c.want || header != (c.want != vnet.NoOffload) {
					t.Errorf("%s: offload %d, header %v", name, d.Offload(), header)
				}
				l := link(t, "refuse0")
				if device, ok := l.(*netlink.Tuntap); !ok || !device.NonPersist || device.Owner != 0 || l.Attrs().Alias != "" {
					t.Errorf("%s: %+v", name, l)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
			if _, err := netlink.LinkByName("refuse0"); err == nil {
				t.Fatalf("%s: the interface is left", name)
			}
		}
	}
	if n := descriptors(t); n > 0 {
		t.Errorf("%d descriptors", n)
	}
}

// Without the privilege water fails when it has opened the driver, which it
// then forgets.
func TestManyFailuresLeakNothing(t *testing.T) {
	namespace(t)
	awaitNoDescriptors(t)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var capabilities [2]unix.CapUserData
	if err := unix.Capget(&header, &capabilities[0]); err != nil {
		t.Fatal(err)
	}
	capabilities[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &capabilities[0]); err != nil { // of this thread, which ends with the test
		t.Fatal(err)
	}
	for range 10_000 {
		if _, err := tun.Open("many0"); !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
	}
	if n := descriptors(t); n > 0 {
		t.Errorf("%d descriptors", n)
	}
}

// A tunnel works the same on what the kernel refuses least and most.
func TestTunnelOnEveryKindOfTUN(t *testing.T) {
	for name, fails := range map[string][]string{
		"all": nil, "TCP": {"offload all"}, "header alone": {"offload all", "offload"}, "plain": {"attach"}, "as water made it": {"reopen"},
	} {
		t.Run(name, func(t *testing.T) {
			namespace(t)
			d, err := tun.OpenBy("kind0", failing(fails...))
			if err != nil {
				t.Fatal(err)
			}
			b := overDevice(t, d)
			for _, format := range []tun.Format{tun.FormatPacket, tun.FormatOffload} {
				client := b.connectBy(t, format)
				if format == tun.FormatPacket {
					up(t, "kind0")
				}
				head := make([]byte, vnet.HeaderLen*int(format))
				put(t, client, append(head, echo(peer4, own4, 1)...))
				if reply := get(t, client); len(reply) != len(head)+28 || reply[len(head)+20] != 0 {
					t.Errorf("answered %x", reply)
				}
			}
		})
	}
}

const crashName = "TUN_TEST_CRASH"

// TestMain's part: opens a device and dies in the named step.
func crash(step string) {
	_, err := tun.OpenBy("crash0", func(s string, do func() error) error {
		before, after := "before "+s == step, "after "+s == step
		if before {
			unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		err := do()
		if after {
			unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		return err
	})
	fmt.Fprintln(os.Stderr, "survived", step, err)
	os.Exit(1)
}

// Whenever we are killed while a device is opened, the next run removes what
// is left.
func TestCrashWhileOpening(t *testing.T) {
	namespace(t)
	kernel, err := rtnl.NewKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	left := 0
	for _, step := range steps() {
		for _, when := range []string{"before ", "after "} {
			cmd := exec.Command("/proc/self/exe", "-test.run=^$")
			cmd.Env = append(os.Environ(), crashName+"="+when+step)
			out, err := cmd.CombinedOutput()
			if exit := (&exec.ExitError{}); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
				t.Fatalf("%s%s: %v: %s", when, step, err, out)
			}
			l, err := netlink.LinkByName("crash0")
			if err != nil {
				continue // the kernel has removed it with its descriptor
			}
			left++
			found, err := kernel.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			state, ok := found.Links[l.Attrs().Index]
			if !ok {
				t.Errorf("%s%s: the next run does not know what is left for its own", when, step)
			}
			if errs := kernel.Execute(t.Context(), []routing.Op{{Verb: routing.Delete, Object: state}}); errs != nil {
				t.Fatal(errs)
			}
			if _, err := netlink.LinkByName("crash0"); err == nil {
				t.Errorf("%s%s: it cannot be removed", when, step)
			}
		}
	}
	if left == 0 {
		t.Error("no crash left anything to sweep: the test is about nothing")
	}
}

const intruderName = "TUN_TEST_INTRUDER"

// intrude is TestMain's part: whenever a line comes, it tries to attach to the
// device in every way there is.
func intrude(node string) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		result := "kept out"
		for _, flags := range []uint16{0, unix.IFF_VNET_HDR, unix.IFF_MULTI_QUEUE, unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE} {
			fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				result = err.Error()
				break
			}
			request, _ := unix.NewIfreq("intruded0")
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
			if unix.IoctlIfreq(fd, unix.TUNSETIFF, request) == nil {
				result = "attached"
			}
			unix.Close(fd)
		}
		fmt.Println(result)
	}
	os.Exit(0)
}

// Nobody else can attach to the device, in no moment of its making.
func TestNobodyElseAttaches(t *testing.T) {
	namespace(t)
	folder := t.TempDir()
	node := filepath.Join(folder, "tun") // as udev has it: for everybody
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{node, folder, filepath.Dir(folder)} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	// The test itself is in a folder that not everybody may enter.
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(folder, "test")
	if out, err := exec.Command("cp", own, program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(program, "-test.run=^$")
	cmd.Env = append(os.Environ(), intruderName+"="+node)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	answers := bufio.NewReader(out)
	try := func(when string) {
		fmt.Fprintln(in)
		answer, err := answers.ReadString('\n')
		if err != nil || strings.TrimSpace(answer) != "kept out" {
			t.Errorf("%s: %q, %v", when, answer, err)
		}
	}
	d, err := tun.OpenBy("intruded0", func(step string, do func() error) error {
		try("before " + step)
		err := do()
		try("after " + step)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	try("afterwards")
}
