package dbuspolicy

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// descriptorMethods are those that take one.
var descriptorMethods = []string{
	wire.SessionInterface + ".AttachPacketChannel",
	wire.SessionInterface + ".ProtectSocket",
}

// service owns the name as the daemon does, answers every call with nothing
// but a descriptor, and keeps what came in.
type service struct {
	conn *godbus.Conn
	in   chan *godbus.Message
}

func startService(t *testing.T, bus *harness.Bus, uid uint32) service {
	t.Helper()
	conn := bus.DialAs(t, uid)
	if name := requestName(t, conn); name != "" {
		t.Fatalf("uid %d cannot own %s: %s", uid, wire.BusName, name)
	}
	if err := conn.AddMatchSignal(godbus.WithMatchInterface("org.example.Broadcast")); err != nil {
		t.Fatal(err)
	}
	all := make(chan *godbus.Message, 64)
	s := service{conn, make(chan *godbus.Message, 1024)}
	conn.Eavesdrop(all) // from here on the connection answers nothing itself
	go func() {
		defer close(s.in)
		for msg := range all {
			if msg.Type == godbus.TypeMethodCall {
				reply(conn, msg, godbus.UnixFD(os.Stdin.Fd()))
			}
			s.in <- msg
		}
	}()
	return s
}

// requestName gives the error's name.
func requestName(t *testing.T, conn *godbus.Conn) string {
	t.Helper()
	const method = "org.freedesktop.DBus.RequestName"
	c := callObject(t, conn, "org.freedesktop.DBus", "/org/freedesktop/DBus", method, wire.BusName, uint32(godbus.NameFlagDoNotQueue))
	return errorName(t, method, c)
}

// next is the first message that comes in and that is wanted.
func next(t *testing.T, in <-chan *godbus.Message, want func(*godbus.Message) bool) *godbus.Message {
	t.Helper()
	late := time.After(harness.Timeout)
	for {
		select {
		case msg, ok := <-in:
			if !ok {
				t.Fatal("the connection is closed")
			}
			if want(msg) {
				return msg
			}
		case <-late:
			t.Fatal("the message did not come")
		}
	}
}

func header(msg *godbus.Message, field godbus.HeaderField) string {
	s, _ := msg.Headers[field].Value().(string)
	return s
}

func reply(conn *godbus.Conn, call *godbus.Message, body ...any) {
	conn.Send(&godbus.Message{
		Type: godbus.TypeMethodReply,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldReplySerial: godbus.MakeVariant(call.Serial()),
			godbus.FieldDestination: call.Headers[godbus.FieldSender],
			godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf(body...)),
		},
		Body: body,
	}, nil)
}

// signal sends one; no destination is a broadcast.
func signal(conn *godbus.Conn, destination, iface, member string, body ...any) {
	headers := map[godbus.HeaderField]godbus.Variant{
		godbus.FieldPath:      godbus.MakeVariant(godbus.ObjectPath(wire.RootPath)),
		godbus.FieldInterface: godbus.MakeVariant(iface),
		godbus.FieldMember:    godbus.MakeVariant(member),
		godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf(body...)),
	}
	if destination != "" {
		headers[godbus.FieldDestination] = godbus.MakeVariant(destination)
	}
	conn.Send(&godbus.Message{Type: godbus.TypeSignal, Headers: headers, Body: body}, nil)
}

func descriptors(n int) []any {
	out := make([]any, n)
	for i := range out {
		out[i] = godbus.UnixFD(os.Stdin.Fd())
	}
	return out
}

// methods are all that the contract has, as interface.member.
func methods(t *testing.T) []string {
	t.Helper()
	interfaces, err := wire.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for name, i := range interfaces {
		for _, m := range i.Methods {
			out = append(out, name+"."+m.Name)
		}
	}
	slices.Sort(out)
	return out
}

func TestOwnName(t *testing.T) {
	bus := startBus(t)
	if got := requestName(t, bus.DialAs(t, harness.Alice)); got != accessDenied {
		t.Errorf("an ordinary user asks for the name: %q", got)
	}
	for _, uid := range []uint32{serviceUID, 0} {
		conn := bus.DialAs(t, uid)
		if got := requestName(t, conn); got != "" {
			t.Errorf("uid %d asks for the name: %q", uid, got)
		}
		if _, err := conn.ReleaseName(wire.BusName); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCalls(t *testing.T) {
	bus := startBus(t)
	startService(t, bus, serviceUID)
	for _, uid := range []uint32{harness.Alice, 0} {
		conn := bus.DialAs(t, uid)
		for _, method := range methods(t) {
			if got := call(t, conn, wire.BusName, method); got != "" {
				t.Errorf("uid %d, %s: %s", uid, method, got)
			}
		}
		for _, method := range []string{
			wire.ManagerInterface + ".Connect", wire.SessionInterface + ".Shutdown", wire.ConfigInterface + ".CreateConfig",
			"org.vpnprovider1.Debug.Dump", "org.freedesktop.DBus.Debug.Stats.GetStats", "org.freedesktop.DBus.Properties.Delete",
			"CreateConfig", // without an interface
		} {
			if got := call(t, conn, wire.BusName, method); got != accessDenied {
				t.Errorf("uid %d, %s: %q", uid, method, got)
			}
		}
	}
}

func TestDescriptors(t *testing.T) {
	bus := startBus(t)
	startService(t, bus, serviceUID)
	for _, uid := range []uint32{harness.Alice, 0} {
		conn := bus.DialAs(t, uid)
		for _, method := range methods(t) {
			want := accessDenied
			if slices.Contains(descriptorMethods, method) {
				want = ""
			}
			if got := call(t, conn, wire.BusName, method, descriptors(1)...); got != want {
				t.Errorf("uid %d, %s with a descriptor: %q, want %q", uid, method, got, want)
			}
			if got := call(t, conn, wire.BusName, method, descriptors(2)...); got != accessDenied {
				t.Errorf("uid %d, %s with two descriptors: %q", uid, method, got)
			}
		}
		c := callObject(t, conn, wire.BusName, wire.SessionRoot+"/1", wire.SessionInterface+".OpenPacketChannel", map[string]godbus.Variant{})
		if c.Err != nil || len(c.Body) != 1 {
			t.Errorf("uid %d: the channel's descriptor did not come: %v %v", uid, c.Body, c.Err)
		} else if fd, ok := c.Body[0].(godbus.UnixFD); !ok || fd < 0 {
			t.Errorf("uid %d: the channel's descriptor did not come: %v", uid, c.Body)
		}
	}
}

// TestSignals: none gets through, with or without a descriptor, however it is
// addressed. (In the order sent: when the call is there, the signals were
// dropped.)
func TestSignals(t *testing.T) {
	bus := startBus(t)
	s := startService(t, bus, serviceUID)
	for _, uid := range []uint32{harness.Alice, 0} {
		conn := bus.DialAs(t, uid)
		signal(conn, wire.BusName, wire.SessionInterface, "PlatformMessage", "connected")
		signal(conn, s.conn.Names()[0], wire.SessionInterface, "ProtectSocket", descriptors(1)...)
		signal(conn, "", "org.example.Broadcast", "Full", descriptors(1)...)
		signal(conn, "", "org.example.Broadcast", "Last")
		if got := call(t, conn, wire.BusName, wire.ManagerInterface+".ListConfigs"); got != "" {
			t.Fatalf("uid %d: %s", uid, got)
		}
		got := next(t, s.in, func(msg *godbus.Message) bool { return header(msg, godbus.FieldSender) == conn.Names()[0] })
		if got.Type != godbus.TypeMethodCall {
			t.Errorf("uid %d: the signal %s came", uid, header(got, godbus.FieldMember))
		}
	}
	// Who leaves, it hears of.
	err := s.conn.BusObject().Call("org.freedesktop.DBus.AddMatch", godbus.FlagNoReplyExpected,
		"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged'").Err
	if err != nil {
		t.Fatal(err)
	}
	leaving := bus.DialAs(t, harness.Bob)
	name := leaving.Names()[0]
	if got := call(t, leaving, wire.BusName, wire.ManagerInterface+".ListConfigs"); got != "" {
		t.Fatal(got)
	}
	leaving.Close()
	next(t, s.in, func(msg *godbus.Message) bool {
		return msg.Type == godbus.TypeSignal && len(msg.Body) == 3 && msg.Body[0] == name && msg.Body[2] == ""
	})
}

// TestDaemonSends is what the daemon itself sends and asks for.
func TestDaemonSends(t *testing.T) {
	for _, uid := range []uint32{serviceUID, 0} {
		t.Run(fmt.Sprint(uid), func(t *testing.T) { testDaemonSends(t, uid) })
	}
}

func testDaemonSends(t *testing.T, uid uint32) {
	t.Helper()
	bus := startBus(t)
	s := startService(t, bus, uid)
	alice, bob := bus.DialAs(t, harness.Alice), bus.DialAs(t, harness.Bob)
	if got := call(t, alice, bob.Names()[0], wire.PeerInterface+".Ping"); got != accessDenied {
		t.Errorf("alice pings bob: %q", got)
	}
	in := make(chan *godbus.Message, 16)
	alice.Eavesdrop(in)

	signal(s.conn, alice.Names()[0], wire.SessionInterface, "PlatformMessage", "connected")
	next(t, in, func(msg *godbus.Message) bool { return header(msg, godbus.FieldMember) == "PlatformMessage" })

	notSignal := func(msg *godbus.Message) bool { return msg.Type != godbus.TypeSignal }
	send(s.conn, alice.Names()[0], wire.PeerInterface, "Ping")
	ping := next(t, in, notSignal)
	reply(alice, ping, descriptors(1)...) // a reply may bring one: logind's inhibitor is one
	if got := next(t, s.in, notSignal); got.Type != godbus.TypeMethodReply || len(got.Body) != 1 {
		t.Errorf("the answer to a ping is %v", got)
	}
	send(s.conn, alice.Names()[0], "org.example.Other", "Do")
	if got := header(next(t, s.in, notSignal), godbus.FieldErrorName); got != accessDenied {
		t.Errorf("the daemon calls a client's method: %q", got)
	}
}

func send(conn *godbus.Conn, destination, iface, member string) {
	conn.Send(&godbus.Message{
		Type: godbus.TypeMethodCall,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(destination),
			godbus.FieldPath:        godbus.MakeVariant(godbus.ObjectPath("/")),
			godbus.FieldInterface:   godbus.MakeVariant(iface),
			godbus.FieldMember:      godbus.MakeVariant(member),
		},
	}, nil)
}
