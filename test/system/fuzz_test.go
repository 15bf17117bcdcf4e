package system

import (
	"fmt"
	"math/rand/v2"
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
	names   []string // of interfaces and their properties, one behind the other
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
		for _, p := range i.Properties {
			f.names = append(f.names, name, p.Name)
		}
	}
	slices.Sort(f.methods)
	return f, nil
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// call makes one, and says which method it was.
func (f *fuzzer) call() (method string, call *godbus.Call) {
	method = pick(f.random, f.methods...)
	path := pick(f.random, f.paths...)
	property := f.random.IntN(len(f.names)/2) * 2
	if f.random.IntN(4) != 0 { // usually on an object that has it
		switch iface := method[:strings.LastIndexByte(method, '.')]; iface {
		case wire.ManagerInterface, wire.ObjectManagerInterface:
			path = wire.RootPath
		case wire.ConfigInterface:
			path = f.config
		case wire.SessionInterface:
			path = f.session
		case wire.PropertiesInterface:
			path = map[string]godbus.ObjectPath{wire.ConfigInterface: f.config, wire.SessionInterface: f.session, wire.ManagerInterface: wire.RootPath}[f.names[property]]
		}
	}
	var args []any
	for rest := f.in[method]; rest != ""; {
		var arg any
		arg, rest = f.argument(rest)
		args = append(args, arg)
	}
	if strings.HasPrefix(method, wire.PropertiesInterface+".") && f.random.IntN(4) != 0 {
		copy(args, []any{f.names[property], f.names[property+1]}[:min(2, len(args))])
	}
	switch f.random.IntN(30) {
	case 0:
		args = append(args, f.value(0).Value())
	case 1:
		args = args[:f.random.IntN(len(args)+1)]
	case 2:
		if len(args) > 0 {
			args[f.random.IntN(len(args))] = f.value(0).Value()
		}
	case 3: // the bus lets hardly any of these through
		args = append(args, f.socket)
	case 4:
		args = append(args, dict{"x": godbus.MakeVariant(f.socket)})
	case 5: // nobody waits for the answer
		f.conn.Object(wire.BusName, path).Go(method, godbus.FlagNoReplyExpected, nil, args...)
	}
	return method, f.conn.call(path, method, args...)
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

// fuzzed is what the answers to a fuzzer's calls were: by the error's name, and
// for each method how many were not about a wrong call.
type fuzzed struct {
	sync.Mutex
	answers map[string]int
	served  map[string]int
}

func (f *fuzzed) count(method, answer string) {
	f.Lock()
	defer f.Unlock()
	f.answers[answer]++
	switch answer {
	case wire.ErrUnknownObject, wire.ErrUnknownInterface, wire.ErrUnknownMethod, wire.ErrInvalidArgs, wire.ErrLimitExceeded, "org.freedesktop.DBus.Error.AccessDenied":
	default:
		f.served[method]++
	}
}

// fuzz has the owner's two connections, another user and root call at random,
// all at once, while sessions come and go, and meanwhile something else happens.
func (v *vpn) fuzz(t *testing.T, calls int, meanwhile func()) *fuzzed {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	bob := v.party(t, harness.Bob, app)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	found := &fuzzed{answers: map[string]int{}, served: map[string]int{}}
	var running sync.WaitGroup
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
				method, call := f.call()
				f.learn(call.Body)
				name := errorName(call.Err)
				if name == "" {
					name = "success"
				}
				found.count(method, name)
				if i == 0 {
					progress(t, n, calls)
				}
			}
		})
	}
	meanwhile()
	running.Wait()
	return found
}

// faults are what must not come of calls, whatever they are.
func (f *fuzzed) faults(log string) (faults []string) {
	if strings.Contains(log, "panic") {
		faults = append(faults, "a call made the daemon panic")
	}
	for name, n := range f.answers {
		if strings.HasPrefix(name, "no D-Bus error") && !strings.Contains(name, "wire format") || strings.Contains(name, "NoReply") || strings.Contains(name, "ServiceUnknown") {
			faults = append(faults, fmt.Sprintf("%d calls: %s", n, name))
		}
	}
	return faults
}

// The daemon answers everything that users make up, keeps nothing, and serves
// on. Every method is reached, and so is every kind of refusal.
func TestFuzzedCalls(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	fds := v.descriptors(t)
	calls := times(12500, 250000)
	found := v.fuzz(t, calls, func() {})
	figure(t, "fuzzed calls", "%d, no crash; %d answered with success, %d refused in %d ways", 4*calls, found.answers["success"], 4*calls-found.answers["success"], len(found.answers)-1)
	t.Logf("%v", found.answers)
	for _, fault := range found.faults(v.daemon.Process().Output()) {
		t.Error(fault)
	}
	v.requireReached(t, found)
	root := v.dial(t, 0)
	for _, uid := range []uint32{harness.Alice, harness.Bob, 0} {
		c := v.dial(t, uid)
		c.manager("ForgetProvider", app, dict{})
		c.manager("ForgetProvider", "com.example.Other", dict{})
	}
	root.must(root.manager("Unlock", dict{}))
	var configs []struct {
		Config           godbus.ObjectPath
		App, Name, State string
	}
	root.must(root.manager("ListConfigs"), &configs)
	for _, c := range configs {
		root.must(root.on(c.Config, "Remove", dict{}))
	}
	v.requireClean(t)
	v.requireDescriptors(t, fds+8) // of connections to name servers and the like, not of calls
	w := v.party(t, harness.Alice, "com.example.After")
	w.mainJob()
}

// requireReached requires that the calls were good enough to find something.
func (v *vpn) requireReached(t *testing.T, found *fuzzed) {
	t.Helper()
	f, err := newFuzzer(v.ui, 0, v.config, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, method := range f.methods {
		if found.served[method] == 0 {
			t.Errorf("no call reached %s", method)
		}
	}
	for _, answer := range []string{
		"success", wire.ErrInvalidParameter, wire.ErrNotFound, wire.ErrNotOwner, wire.ErrWrongState,
		wire.ErrInvalidArgs, wire.ErrUnknownObject, wire.ErrUnknownInterface, wire.ErrUnknownProperty, wire.ErrPropertyReadOnly,
		"org.freedesktop.DBus.Error.AccessDenied",
	} {
		if found.answers[answer] == 0 {
			t.Errorf("no call was answered with %s", answer)
		}
	}
}

// The control: a daemon that ends meanwhile does not go unnoticed.
func TestFuzzerNotices(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	if faults := v.fuzz(t, 2000, v.daemon.Kill9).faults(v.daemon.Process().Output()); len(faults) == 0 {
		t.Error("the daemon was killed, and the fuzzer found no fault")
	}
	v.daemon.Cleanup(t)
}
