package system

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// fairness is how long 99 of 100 calls of another user take at most, and patience
// how long the slowest does: bus libraries wait no longer. A soak, which has the
// machine to itself, holds the daemon to them.
const (
	fairness = 100 * time.Millisecond
	patience = 25 * time.Second
)

// maxMemory is what the daemon may have had resident at most, in KiB.
const maxMemory = 256 << 10

// quiet is a call that wants no answer, as it is sent: nothing tells the sender
// to wait, but the bus that takes no more.
func quiet(t testing.TB, path godbus.ObjectPath, iface, member string, args ...any) []byte {
	t.Helper()
	m := &godbus.Message{
		Type: godbus.TypeMethodCall, Flags: godbus.FlagNoReplyExpected, Body: args,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(wire.BusName),
			godbus.FieldPath:        godbus.MakeVariant(path),
			godbus.FieldInterface:   godbus.MakeVariant(iface),
			godbus.FieldMember:      godbus.MakeVariant(member),
		},
	}
	if len(args) > 0 {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(args...))
	}
	return harness.Encode(t, m, 2)
}

// flood is what a hostile user sends to the daemon, again and again, without a
// pause.
type flood struct {
	name        string
	connections int
	calls       [][]byte
	fds         []int // with each call
	prepare     func(v *vpn)

	// fair: other users are served as ever. A flood of several connections or
	// of large messages fills the queue of the bus before the daemon, which
	// serves all connections in turns: everybody waits for that. And a config
	// that is stored waits for the disk.
	fair bool
}

func floods(t *testing.T, socket int) []flood {
	t.Helper()
	config := godbus.ObjectPath(wire.ConfigRoot + "/" + string(driver.NewConfigID(harness.Alice, app, configName)))
	session := godbus.ObjectPath(wire.SessionRoot + "/1")
	call := func(path godbus.ObjectPath, member string, args ...any) []byte {
		return quiet(t, path, interfaceOf(path), member, args...)
	}
	all := quiet(t, wire.RootPath, wire.ObjectManagerInterface, "GetManagedObjects")
	// Small in a message, large in memory: each byte becomes a variant.
	large := func(bytes int) []byte {
		list := make([]godbus.Variant, bytes/4)
		for i := range list {
			list[i] = godbus.MakeVariant(byte(i))
		}
		return call(wire.RootPath, "CreateConfig", app, "Large", dict{"data": godbus.MakeVariant(dict{"x": godbus.MakeVariant(list)})})
	}
	blocks := make([]string, 16384)
	for i := range blocks {
		blocks[i] = fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255)
	}
	lists := dict{"inclusionList": godbus.MakeVariant(blocks), "exclusionList": godbus.MakeVariant(blocks)}
	protect := call(session, "ProtectSocket", uint32(0), dict{})
	protect = bytes.Replace(protect, []byte("ua{sv}"), []byte("ha{sv}"), 1)
	list := call(wire.RootPath, "ListConfigs")
	return []flood{
		{name: "calls", connections: 1, fair: true, calls: [][]byte{list}},
		{name: "calls of all objects", connections: 1, fair: true, calls: [][]byte{all}},
		{name: "calls of many large objects", connections: 30, calls: [][]byte{all}, prepare: hoard},
		{name: "packets", connections: 1, fair: true, calls: [][]byte{call(session, "SendPacket", datagram(includedIPv4, tunnelIPv4, "x"))}},
		{name: "wrong calls", connections: 1, fair: true, calls: [][]byte{
			call(wire.RootPath, "NoSuchMethod", "x"), call("/x", "Connect", dict{}), call(config, "Connect", "x"),
			quiet(t, wire.RootPath, wire.PropertiesInterface, "Set", wire.ManagerInterface, "Version", godbus.MakeVariant("x")),
		}},
		{name: "descriptors", connections: 1, fair: true, calls: [][]byte{withFDs(protect)}, fds: []int{socket}},
		{name: "calls that connect and store", connections: 1, calls: [][]byte{
			call(config, "Connect", dict{}), call(config, "Update", dict{"data": godbus.MakeVariant(dict{"n": godbus.MakeVariant(1)})}), call(config, "Disconnect", dict{}),
		}},
		{name: "large bodies", connections: 1, calls: [][]byte{large(1000 << 10)}},
		{name: "bodies over the limit", connections: 1, calls: [][]byte{large(8 << 20)}},
		{name: "long lists", connections: 1, calls: [][]byte{call(session, "SetParameters", lists)}},
		{name: "long paths", connections: 1, calls: [][]byte{call(godbus.ObjectPath("/"+strings.Repeat("x", 4<<20)), "ListConfigs")}},
		{name: "calls of 100 connections", connections: 100, calls: [][]byte{list}},
		{name: "large bodies of 30 connections", connections: 30, calls: [][]byte{large(1000 << 10)}},
	}
}

// hoard has the daemon keep as much as it takes of one user: as many configs as
// may be, with data that is small in a message.
func hoard(v *vpn) {
	v.t.Helper()
	data := dict{}
	for i := range 1 << 16 {
		data[strconv.FormatInt(int64(i), 36)] = godbus.MakeVariant(true)
	}
	entries, configs := len(data), 0
	for i := range 200 {
		call := v.ui.manager("CreateConfig", app, fmt.Sprint("hoard", i), dict{"data": godbus.MakeVariant(data)})
		for errorName(call.Err) == wire.ErrLimitExceeded && strings.Contains(call.Err.Error(), "bytes") && len(data) > 1 {
			for key := range data { // a half of it, then
				if delete(data, key); len(data) <= entries/2 {
					break
				}
			}
			entries = len(data)
			call = v.ui.manager("CreateConfig", app, fmt.Sprint("hoard", i), dict{"data": godbus.MakeVariant(data)})
		}
		if call.Err != nil {
			v.t.Logf("%d configs with up to %d entries, then %v", configs, entries, call.Err)
			return
		}
		configs++
	}
	v.t.Error("there is no end to it")
}

// withFDs puts in the header that a descriptor comes along: godbus would write
// the field only with a descriptor of its own.
func withFDs(message []byte) []byte {
	fields := binary.LittleEndian.Uint32(message[12:])
	end := 16 + (fields+7)&^7
	more := []byte{byte(godbus.FieldUnixFDs), 1, 'u', 0, 1, 0, 0, 0}
	out := append(append(append([]byte{}, message[:end]...), more...), message[end:]...)
	binary.LittleEndian.PutUint32(out[12:], end-16+uint32(len(more)))
	return out
}

// One user floods the daemon with calls. It stays within its memory, with the
// descriptors that it had, and serves another user: at once where the bus lets
// it, which only a soak measures. The test is not parallel and the daemon is
// without the race detector, so that the figures tell something.
func TestFloods(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	for _, f := range floods(t, pair[0]) {
		t.Run(f.name, func(t *testing.T) {
			m := newHost(t)
			m.start(t, harness.DaemonOptions{Program: harness.PlainBinary(t, "vpnproviderd")})
			v, bob := m.party(t, harness.Alice, app), m.dial(t, harness.Bob)
			bob.must(bob.manager("ListConfigs"))
			if f.prepare != nil {
				f.prepare(v)
			}
			fds := m.descriptors(t)
			quiet := measured(bob, time.Second)
			sent, stop := m.flood(t, f)
			long := time.Duration(times(2, 30)) * time.Second
			busy := measured(bob, long)
			stop()
			begun := time.Now()
			bob.must(bob.manager("ListConfigs"))
			memory := m.status(t, "VmHWM")
			figure(t, "flood of "+f.name, "%d calls; of another user %d calls, p50 %v, p99 %v, max %v (before: p99 %v); the first afterwards %v; VmHWM %d MiB",
				sent.Load(), len(busy), busy.at(50), busy.at(99), busy.at(100), quiet.at(99), time.Since(begun).Round(time.Millisecond), memory>>10)
			if memory > maxMemory {
				t.Errorf("the daemon had %d KiB resident", memory)
			}
			if f.fair && soaking() && busy.at(99) > fairness {
				t.Errorf("p99 of another user's calls is %v", busy.at(99))
			}
			if soaking() && busy.at(100) > patience {
				t.Errorf("a call of another user took %v", busy.at(100))
			}
			if sent.Load() < 3 { // of 8 MiB, the bus takes a few a second
				t.Errorf("only %d calls were sent", sent.Load())
			}
			harness.Eventually(t, 3*harness.Timeout, "the flood has ebbed", func() error {
				return v.ui.manager("ForgetProvider", app, dict{}).Err
			})
			m.requireDescriptors(t, fds)
			m.party(t, harness.Bob, app).mainJob()
		})
	}
}

// flood does that until stop.
func (m *machine) flood(t *testing.T, f flood) (sent *atomic.Int64, stop func()) {
	t.Helper()
	sent = new(atomic.Int64)
	var running sync.WaitGroup
	var all []*net.UnixConn
	for range f.connections {
		c := m.bus.DialRaw(t, harness.Alice)
		all = append(all, c)
		running.Go(func() {
			for n := 0; ; n++ {
				message := f.calls[n%len(f.calls)]
				wrote, _, err := c.WriteMsgUnix(message, unix.UnixRights(f.fds...), nil)
				if err == nil && wrote < len(message) {
					_, err = c.Write(message[wrote:])
				}
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("the bus ended the connection: %v", err)
					}
					return
				}
				sent.Add(1)
			}
		})
	}
	return sent, func() {
		for _, c := range all {
			c.Close()
		}
		running.Wait()
	}
}

// measured is how long calls take, one after the other.
func measured(c *conn, long time.Duration) (took figures) {
	c.t.Helper()
	for begun := time.Now(); time.Since(begun) < long || len(took) == 0; {
		at := time.Now()
		c.must(c.manager("ListConfigs"))
		took = append(took, time.Since(at))
	}
	return took
}
