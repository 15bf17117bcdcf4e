package dbus_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/drivertest"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// descriptors counts those that this process has open.
func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// Whatever a call carries, no descriptor stays open that nobody asked for.
func TestDescriptors(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd := godbus.UnixFD(w.Fd())
	raw := dialRaw(t, b.bus)
	before := descriptors(t)
	for range 60 {
		p.session(session, "NoSuchMethod", fd)
		p.session(session, "ProtectSocket", fd)
		p.session(session, "ProtectSocket", fd, dict{"x": godbus.MakeVariant(1)})
		p.session(session, "ProtectSocket", fd, dict{"x": godbus.MakeVariant(fd)})
		p.session(session, "SetParameters", dict{"address": godbus.MakeVariant(fd)})
		p.session("/nowhere", "ProtectSocket", fd, dict{})
		p.manager("CreateConfig", app, "x", dict{"data": godbus.MakeVariant(dict{"x": godbus.MakeVariant([]godbus.UnixFD{fd, fd})})})
		p.call(wire.RootPath, wire.PeerInterface+".Ping", fd, fd)
		// Descriptors that the body does not refer to.
		raw.call(t, session, wire.SessionInterface, "ProtectSocket", "s", text("x"), int(fd))
		raw.call(t, wire.RootPath, wire.ManagerInterface, "ListConfigs", "", nil, int(fd), int(fd), int(fd))
		// A descriptor that is not there.
		raw.call(t, session, wire.SessionInterface, "ProtectSocket", "ha{sv}", append(number(9), number(0)...), int(fd))
	}
	p.must(p.session(session, "ProtectSocket", fd, dict{}))
	p.must(p.manager("ListConfigs"))
	raw.await(t)
	harness.Eventually(t, harness.Timeout, "the descriptors", func() error {
		if n := descriptors(t); n != before {
			return fmt.Errorf("%d descriptors were open before, %d are now", before, n)
		}
		return nil
	})
	if !strings.Contains(strings.Join(b.Log(), "\n"), "protect socket") {
		t.Error("the socket did not arrive")
	}
}

// The descriptors that we give away are ours no more.
func TestOpenChannels(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	before := descriptors(t)
	for range 200 {
		var fd godbus.UnixFD
		var info dict
		p.must(p.session(session, "OpenPacketChannel", dict{}), &fd, &info)
		if info["mtu"].Value() != uint32(1500) || info["format"].Value() != "packet" || info["batch"].Value() == nil || info["maxMessage"].Value() == nil {
			t.Fatalf("info %v", info)
		}
		syscall.Close(int(fd))
	}
	// The last channel is the session's still; what was passed with the last
	// answer is closed when that is sent.
	harness.Eventually(t, harness.Timeout, "the descriptors", func() error {
		if n := descriptors(t); n > before+1 {
			return fmt.Errorf("%d descriptors were open before, %d are now", before, n)
		}
		return nil
	})
}

// The format that a client asks for is the tunnel's and the answer's, whichever
// way the channel comes.
func TestChannelFormats(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	for _, c := range []struct {
		options    dict
		format     driver.ChannelFormat
		name       string
		batch, max uint32
	}{
		{dict{}, driver.FormatPacket, "packet", 128, 65535},
		{dict{"format": godbus.MakeVariant("offload")}, driver.FormatOffload, "offload", 16, 65546},
		{dict{"format": godbus.MakeVariant("packet")}, driver.FormatPacket, "packet", 128, 65535},
	} {
		want := dict{
			"mtu": godbus.MakeVariant(uint32(1500)), "format": godbus.MakeVariant(c.name),
			"batch": godbus.MakeVariant(c.batch), "maxMessage": godbus.MakeVariant(c.max),
		}
		var fd godbus.UnixFD
		var opened, attached dict
		p.must(p.session(session, "OpenPacketChannel", c.options), &fd, &opened)
		syscall.Close(int(fd))
		if opened := fmt.Sprint(opened); opened != fmt.Sprint(want) || b.Tunnel().Format() != c.format {
			t.Errorf("opened %v, format %d, want %v", opened, b.Tunnel().Format(), want)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p.must(p.session(session, "AttachPacketChannel", godbus.UnixFD(w.Fd()), c.options), &attached)
		r.Close()
		w.Close()
		if attached := fmt.Sprint(attached); attached != fmt.Sprint(want) || b.Tunnel().Format() != c.format {
			t.Errorf("attached %v, format %d, want %v", attached, b.Tunnel().Format(), want)
		}
	}
	for _, bad := range []any{"", "Packet", "gso", uint32(1)} {
		p.refused(p.session(session, "OpenPacketChannel", dict{"format": godbus.MakeVariant(bad)}), wire.ErrInvalidParameter)
	}
}

// pipeline makes calls, so many at a time, and requires that each succeeds.
func (c *client) pipeline(calls, window int, begin func(i int, done chan *godbus.Call)) {
	c.t.Helper()
	done := make(chan *godbus.Call, window)
	for i := range calls + window {
		if i >= window {
			if call := <-done; call.Err != nil {
				c.t.Fatalf("%s: %v", call.Method, call.Err)
			}
		}
		if i < calls {
			begin(i, done)
		}
	}
}

// 100,000 pipelined calls of one sender, 16 at a time, are served in their
// order, and 16 are never too many: a call that is answered is not in flight.
func TestOrder(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	p.must(p.session(session, "SetParameters", parameters()))
	b.Log()
	const calls, window = 80000, 16
	object := p.Object(wire.BusName, session)
	p.pipeline(calls, window, func(i int, done chan *godbus.Call) {
		object.Go(wire.SessionInterface+".SendPacket", 0, done, binary.BigEndian.AppendUint32(nil, uint32(i)))
	})
	log := b.Log()
	if len(log) != calls {
		t.Fatalf("%d of %d arrived", len(log), calls)
	}
	wrong := 0
	for i, line := range log {
		if line != fmt.Sprintf("sent %08x", i) {
			wrong++
		}
	}
	if wrong != 0 {
		t.Errorf("%d of %d calls were served out of order", wrong, calls)
	}

	// So are those that count among the 16; signals tell what each did.
	const updates = 5000
	p.pipeline(updates, window, func(i int, done chan *godbus.Call) {
		p.Object(wire.BusName, config).Go(wire.ConfigInterface+".Update", 0, done, dict{"data": godbus.MakeVariant(dict{"n": godbus.MakeVariant(i)})})
	})
	for i := 0; i < updates; {
		select {
		case s := <-p.signals:
			if s.Path != config || !strings.HasSuffix(s.Name, ".PropertiesChanged") {
				continue
			}
			data, ok := s.Body[1].(dict)["Data"].Value().(dict)
			if !ok {
				continue // of the Connect
			}
			if got := data["n"].Value(); got != int32(i) {
				t.Fatalf("update %d: %v", i, got)
			}
			i++
		default:
			t.Fatalf("%d updates were told of %d", i, updates)
		}
	}
	manager := p.Object(wire.BusName, wire.RootPath)
	p.pipeline(15000, window, func(_ int, done chan *godbus.Call) {
		manager.Go(wire.ManagerInterface+".ListConfigs", 0, done)
	})
}

// Calls over the limit are refused at once, outside the order; those within
// it are served when their turn comes.
func TestCallsInFlight(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	release := b.Hold("open")
	done := make(chan *godbus.Call, 100)
	object := p.Object(wire.BusName, config)
	for range 16 {
		object.Go(wire.ConfigInterface+".Connect", 0, done, dict{})
	}
	p.refused(p.manager("ListConfigs"), wire.ErrLimitExceeded)
	if n := len(done); n != 0 {
		t.Errorf("%d calls are done", n)
	}
	other := b.client(harness.Bob)
	other.must(other.manager("ListConfigs"))
	release()
	for range 16 {
		if c := <-done; c.Err != nil {
			t.Error(c.Err)
		}
	}
	p.must(p.manager("ListConfigs"))
}

// A call that waits steps aside for the sender's next.
func TestWaitingCallStepsAside(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	p.must(p.config(config, "Connect", dict{}))
	release := b.Hold("undo")
	ui, second := b.client(harness.Alice), make(chan *godbus.Call, 1)
	first := ui.Object(wire.BusName, config).Go(wire.ConfigInterface+".Disconnect", 0, make(chan *godbus.Call, 1), dict{})
	harness.Eventually(t, harness.Timeout, "disconnecting", func() error {
		return p.state(config, "disconnecting")
	})
	p.Object(wire.BusName, config).Go(wire.ConfigInterface+".Connect", 0, second, dict{})
	p.must(p.manager("ListConfigs")) // behind the Connect that waits
	release()
	if c := <-first.Done; c.Err != nil {
		t.Error(c.Err)
	}
	if c := <-second; c.Err != nil || c.Body[0] != godbus.ObjectPath(wire.SessionRoot+"/2") {
		t.Errorf("%v %v", c.Body, c.Err)
	}
}

func TestRate(t *testing.T) {
	b := newBench(t, func(o *dbus.Options) { o.Rate = dbus.Rate{Burst: 20, PerSecond: 5} })
	p := b.client(harness.Alice)
	p.must(p.manager("RegisterProvider", app, dict{}))
	begun, refused := time.Now(), 0
	for i := range 60 {
		if e, ok := p.manager("CreateConfig", app, strconv.Itoa(i), dict{}).Err.(godbus.Error); ok && e.Name == wire.ErrLimitExceeded {
			refused++
		}
	}
	if more := int(time.Since(begun).Seconds() * 5); refused < 40-more || refused > 40 {
		t.Errorf("%d of 60 calls were refused, with %d more than the burst allowed", refused, more)
	}
	p.must(p.manager("ListConfigs"))
}

// Introspection and sessions that come and go do not disturb each other.
func TestIntrospectWhileSessionsComeAndGo(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	watcher := b.client(harness.Alice)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, c := range []*client{watcher, b.client(0), b.client(harness.Bob)} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, path := range []godbus.ObjectPath{"/", wire.RootPath, wire.SessionRoot, config} {
					c.call(path, wire.IntrospectableInterface+".Introspect")
				}
				c.must(c.call(wire.RootPath, wire.ObjectManagerInterface+".GetManagedObjects"))
			}
		})
	}
	for range 1000 {
		p.must(p.config(config, "Connect", dict{}))
		p.must(p.config(config, "Disconnect", dict{}))
	}
	close(stop)
	wg.Wait()
}

// A panic answers its call, and the service lives.
func TestPanic(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	p.must(p.session(session, "SetParameters", parameters()))
	b.Fail(drivertest.Panic, true)
	p.refused(p.session(session, "SendPacket", []byte{0x45}), wire.ErrFailed)
	b.Fail(drivertest.Panic, false)
	p.must(p.session(session, "SendPacket", []byte{0x45}))
	if !strings.Contains(b.log.String(), "panic") {
		t.Error("the log has nothing of it")
	}
}

// Messages that are too long, or that godbus cannot decode though the bus
// lets them pass, are refused and harm nobody.
func TestUnreadableMessages(t *testing.T) {
	b := newBench(t)
	p, _ := b.provider()
	p.refused(p.manager("CreateConfig", app, strings.Repeat("x", 2<<20), dict{}), wire.ErrLimitExceeded)
	raw := dialRaw(t, b.bus)
	// 32 arrays and then 32 structs deep is what the specification allows.
	deep := strings.Repeat("a", 32) + strings.Repeat("(", 32) + "y" + strings.Repeat(")", 32)
	raw.call(t, wire.RootPath, wire.ManagerInterface, "ListConfigs", deep, number(0))
	// Variants in variants, up to the limit of the bus.
	for depth := 1; depth <= 64; depth++ {
		body := append(bytes.Repeat([]byte{1, 'v', 0}, depth-1), 1, 'y', 0, 7)
		raw.call(t, wire.RootPath, wire.ManagerInterface, "ListConfigs", "v", body)
	}
	raw.await(t)
	p.must(p.manager("ListConfigs"))
}

// The provider that leaves the bus takes its session along.
func TestProviderLeaves(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	p.must(p.config(config, "Connect", dict{}))
	ui := b.client(harness.Alice)
	p.Close()
	harness.Eventually(t, harness.Timeout, "the end", func() error {
		return ui.state(config, "failed")
	})
}

// A provider that does not read its signals stops the packets, not the
// service.
func TestPacketSignals(t *testing.T) {
	b := newBench(t)
	p := b.client(harness.Alice)
	p.must(p.manager("RegisterProvider", app, dict{"packetSignals": godbus.MakeVariant(true)}))
	var config, session godbus.ObjectPath
	p.must(p.manager("CreateConfig", app, "Work", dict{}), &config)
	p.must(p.config(config, "Connect", dict{}), &session)
	p.heard()
	const packets = 2000
	for i := range packets {
		if err := b.Tunnel().Events.Packet(binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil {
			t.Fatal(err)
		}
	}
	got := p.heard()
	if len(got) != packets || !strings.HasPrefix(got[packets-1], "PacketReceived") {
		t.Fatalf("%d of %d packets: %s", len(got), packets, got[len(got)-1])
	}

	// Without an answer to a ping at most 256 go out.
	raw := dialRaw(t, b.bus)
	raw.call(t, wire.RootPath, wire.ManagerInterface, "RegisterProvider", "sa{sv}", packetSignals("com.example.Raw"))
	raw.call(t, wire.RootPath, wire.ManagerInterface, "CreateConfig", "ssa{sv}", join(text("com.example.Raw"), text("R"), number(0), nil))
	raw.await(t)
	root := b.client(0)
	root.must(root.manager("FindConfig", "com.example.Raw", "R", dict{"owner": godbus.MakeVariant(uint32(0))}), &config)
	root.must(root.config(config, "Connect", dict{}))
	var sent atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for b.Tunnel().Events.Packet([]byte{1}) == nil {
			sent.Add(1)
		}
	}()
	harness.Eventually(t, harness.Timeout, "256 packets go out", func() error {
		if n := sent.Load(); n < 256 {
			return fmt.Errorf("%d went out", n)
		}
		return nil
	})
	select {
	case <-ended:
		t.Error("the receiver gave up")
	case <-time.After(200 * time.Millisecond): // nothing to wait for: it must stand still
	}
	root.must(root.config(config, "Disconnect", dict{}))
	<-ended
	if n := sent.Load(); n != 256 {
		t.Errorf("%d packets went out without an answer", n)
	}
}

// raw speaks D-Bus by hand: it can send what no library would.
type raw struct {
	conn   *net.UnixConn
	serial uint32
}

func dialRaw(t testing.TB, bus *harness.Bus) *raw {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: strings.TrimPrefix(bus.Address, "unix:path="), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(3 * harness.Timeout))
	r := &raw{conn: conn}
	for _, line := range []string{"\x00AUTH EXTERNAL 30\r\n", "NEGOTIATE_UNIX_FD\r\n"} {
		if _, err := conn.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 256)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Write([]byte("BEGIN\r\n")); err != nil {
		t.Fatal(err)
	}
	r.send(t, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", "", nil)
	return r
}

func (r *raw) call(t testing.TB, path godbus.ObjectPath, iface, member, signature string, body []byte, fds ...int) {
	t.Helper()
	r.send(t, wire.BusName, path, iface, member, signature, body, fds...)
}

func (r *raw) send(t testing.TB, to string, path godbus.ObjectPath, iface, member, signature string, body []byte, fds ...int) {
	t.Helper()
	r.serial++
	var fields []byte
	field := func(code byte, kind string, value []byte) {
		fields = pad(fields, 8)
		fields = append(fields, code, 1, kind[0], 0)
		if kind != "g" {
			fields = pad(fields, 4)
		}
		fields = append(fields, value...)
	}
	field(1, "o", text(string(path)))
	field(2, "s", text(iface))
	field(3, "s", text(member))
	field(6, "s", text(to))
	if signature != "" {
		field(8, "g", append([]byte{byte(len(signature))}, signature+"\x00"...))
	}
	if len(fds) > 0 {
		field(9, "u", number(uint32(len(fds))))
	}
	message := join([]byte{'l', 1, 0, 1}, number(uint32(len(body))), number(r.serial), number(uint32(len(fields))))
	message = append(pad(append(message, fields...), 8), body...)
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	if _, _, err := r.conn.WriteMsgUnix(message, oob, nil); err != nil {
		t.Fatal(err)
	}
}

// await waits until the service has answered all calls so far: it reads until
// the answer to the last one.
func (r *raw) await(t testing.TB) {
	t.Helper()
	var all []byte
	ask := func() {
		all = nil
		r.call(t, wire.RootPath, wire.ManagerInterface, "NoSuchMethodAtAll", "", nil)
	}
	ask()
	for !bytes.Contains(all, []byte("NoSuchMethodAtAll")) {
		chunk := make([]byte, 64<<10)
		n, err := r.conn.Read(chunk)
		if err != nil {
			t.Fatalf("the service or the bus hung up: %v", err)
		}
		if all = append(all, chunk[:n]...); bytes.Contains(all, []byte("calls in flight")) {
			ask()
		}
	}
}

func pad(b []byte, to int) []byte {
	for len(b)%to != 0 {
		b = append(b, 0)
	}
	return b
}

func number(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }

func text(s string) []byte { return append(append(number(uint32(len(s))), s...), 0) }

// join puts values of 4-byte alignment behind each other.
func join(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(pad(out, 4), p...)
	}
	return pad(out, 4)
}

func packetSignals(app string) []byte {
	head := pad(text(app), 4)
	entry := join(text("packetSignals"))
	entry = entry[:len(text("packetSignals"))]
	entry = append(entry, 1, 'b', 0)
	entry = append(pad(entry, 4), number(1)...)
	out := append(head, number(uint32(len(entry)))...)
	return append(pad(out, 8), entry...)
}
