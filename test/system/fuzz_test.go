package system

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// fuzzer calls methods of the contract with arguments that chance makes, many
// of them nearly right.
type fuzzer struct {
	*conn
	random  *rand.Rand
	socket  godbus.UnixFD
	methods []string // interface.member
	in      map[string]string
	paths   []godbus.ObjectPath

	config, session godbus.ObjectPath // of the user, the session the last one
}

func newFuzzer(c *conn, seed uint64, config godbus.ObjectPath, socket int) (*fuzzer, error) {
	interfaces, err := wire.Interfaces()
	if err != nil {
		return nil, err
	}
	f := &fuzzer{conn: c, random: rand.New(rand.NewPCG(seed, 0)), socket: godbus.UnixFD(socket), in: map[string]string{}, config: config}
	f.session = wire.SessionRoot + "/1"
	f.paths = []godbus.ObjectPath{"/", wire.RootPath, wire.ConfigRoot, wire.SessionRoot, config, "/org/other", wire.ConfigRoot + "/_", wire.SessionRoot + "/x"}
	for name, i := range interfaces {
		for _, m := range i.Methods {
			f.methods = append(f.methods, name+"."+m.Name)
			f.in[name+"."+m.Name] = m.In()
		}
	}
	slices.Sort(f.methods)
	return f, nil
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func (f *fuzzer) call() *godbus.Call {
	method := pick(f.random, f.methods...)
	path := pick(f.random, f.paths...)
	if f.random.IntN(4) != 0 { // usually on an object that has it
		switch iface := method[:strings.LastIndexByte(method, '.')]; iface {
		case wire.ManagerInterface, wire.ObjectManagerInterface:
			path = wire.RootPath
		case wire.ConfigInterface:
			path = f.config
		case wire.SessionInterface:
			path = f.session
		}
	}
	var args []any
	for rest := f.in[method]; rest != ""; {
		var arg any
		arg, rest = f.argument(rest)
		args = append(args, arg)
	}
	switch f.random.IntN(20) {
	case 0:
		args = append(args, f.value(0).Value())
	case 1:
		args = args[:f.random.IntN(len(args)+1)]
	}
	return f.conn.call(path, method, args...)
}

// learn takes what an answer brought.
func (f *fuzzer) learn(results []any) {
	for _, result := range results {
		if fd, ok := result.(godbus.UnixFD); ok {
			unix.Close(int(fd))
		}
	}
	for {
		select {
		case s := <-f.signals:
			if s != nil && strings.HasSuffix(s.Name, ".InterfacesAdded") {
				if path, ok := s.Body[0].(godbus.ObjectPath); ok && interfaceOf(path) == wire.SessionInterface {
					f.session = path
				}
			}
		default:
			return
		}
	}
}

// argument makes one of the first complete type of a signature.
func (f *fuzzer) argument(signature string) (arg any, rest string) {
	switch {
	case strings.HasPrefix(signature, "a{sv}"):
		return f.dict(0), signature[5:]
	case strings.HasPrefix(signature, "ay"):
		packet := datagram(includedIPv4, tunnelIPv4, "fuzz")
		packet[f.random.IntN(len(packet))] = byte(f.random.Uint32())
		return packet[:f.random.IntN(len(packet)+1)], signature[2:]
	}
	switch signature[0] {
	case 's':
		arg = f.text()
	case 'o':
		arg = pick(f.random, f.paths...)
	case 'h':
		arg = f.socket
	case 'v':
		arg = f.value(0)
	default:
		arg = f.random.Uint32()
	}
	return arg, signature[1:]
}

func (f *fuzzer) text() string {
	return pick(f.random, "", app, configName, "com.example.Other", "connected", "failure", "disconnected", "x", "..", "../../etc/passwd",
		strings.Repeat("x", f.random.IntN(600)), "\n", "\x7f", "\u202e", "10.8.0.2/24", "0.0.0.0/0", "::/0", "fe80::1%lo", "1280", "-1",
		wire.ConfigInterface, wire.ManagerInterface, "State", "Statistics", strconv.Itoa(f.random.Int()), "packet", "corp.example")
}

// dict is one with keys that the contract knows, mostly.
func (f *fuzzer) dict(depth int) dict {
	if f.random.IntN(3) == 0 {
		return fullTunnel()
	}
	d := dict{}
	for range f.random.IntN(5) {
		key := pick(f.random, "address", "addresses", "mtu", "inclusionList", "exclusionList", "dnsServers", "domainSearch", "matchDomains",
			"reconnect", "allowLan", "allowFamilies", "broadcastAddress", "data", "autoConnect", "lockdown", "owner", "displayName", "icon",
			"packetSignals", "replace", "format", "uid", f.text())
		d[key] = f.value(depth + 1)
	}
	return d
}

func (f *fuzzer) value(depth int) godbus.Variant {
	values := []any{
		f.text(),
		[]string{f.text(), f.text()},
		true, false, f.random.Uint32(), -f.random.Int64(), 0.5,
		[]byte{1, 2},
		byte(f.random.Uint32()), uint16(3),
		[]string{"0.0.0.0/0", "::/0"},
		"10.8.0.2/24", godbus.ObjectPath("/x"),
		struct{ A, B string }{"a", f.text()},
		godbus.SignatureOf(""),
	}
	if depth < 3 {
		values = append(values, f.dict(depth), []godbus.Variant{f.value(depth + 1)}, f.value(depth+1))
	}
	return godbus.MakeVariant(pick(f.random, values...))
}

// Three users call at random, all at once, while sessions come and go. The
// daemon answers everything, keeps nothing, and serves on. FUZZ_CALLS sets how
// many calls each makes.
func TestFuzzedCalls(t *testing.T) {
	t.Parallel()
	calls := 1000
	if s := os.Getenv("FUZZ_CALLS"); s != "" {
		var err error
		if calls, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	v := newVPN(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	bob := v.party(t, harness.Bob, app)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var running sync.WaitGroup
	var mu sync.Mutex
	answers := map[string]int{}
	for i, c := range []*conn{v.provider, v.ui, bob.provider, v.dial(t, 0)} {
		f, err := newFuzzer(c, seed+uint64(i), []godbus.ObjectPath{v.config, v.config, bob.config, v.config}[i], pair[0])
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			for n := range calls {
				if n%50 == 0 { // what was removed comes back
					c.manager("RegisterProvider", app, dict{})
					c.manager("CreateConfig", app, configName, dict{})
					c.on(f.config, "Connect", dict{})
				}
				call := f.call()
				f.learn(call.Body)
				name := errorName(call.Err)
				if name == "" {
					name = "success"
				}
				mu.Lock()
				answers[name]++
				mu.Unlock()
			}
		})
	}
	running.Wait()
	t.Logf("%d calls: %v", 4*calls, answers)
	if log := v.daemon.Process().Output(); strings.Contains(log, "panic") {
		t.Error("a call made the daemon panic")
	}
	for name := range answers {
		if strings.HasPrefix(name, "no D-Bus error") && !strings.Contains(name, "wire format") {
			t.Errorf("%d calls: %s", answers[name], name)
		}
	}
	root := v.dial(t, 0)
	for _, uid := range []uint32{harness.Alice, harness.Bob} {
		c := v.dial(t, uid)
		c.manager("ForgetProvider", app, dict{})
		c.manager("ForgetProvider", "com.example.Other", dict{})
	}
	var configs []struct {
		Config           godbus.ObjectPath
		App, Name, State string
	}
	root.must(root.manager("ListConfigs"), &configs)
	for _, c := range configs {
		root.must(root.on(c.Config, "Remove", dict{}))
	}
	v.requireClean(t)
	w := v.party(t, harness.Alice, "com.example.After")
	w.mainJob()
}
