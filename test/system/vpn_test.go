package system_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const app = "com.example.Demo"

type dict = map[string]godbus.Variant

// vpn is a host with the daemon, a provider of Alice's, and a config of it.
type vpn struct {
	*harness.Topology
	t        testing.TB
	bus      *harness.Bus
	daemon   *harness.Daemon
	provider *conn
	ui       *conn
	config   godbus.ObjectPath
}

// conn is one connection to the bus, with the signals that it gets.
type conn struct {
	*godbus.Conn
	t       testing.TB
	signals chan *godbus.Signal
}

func newVPN(t testing.TB, args ...string) *vpn {
	t.Helper()
	v := &vpn{Topology: harness.NewTopology(t), t: t}
	v.bus = harness.StartBus(t, v.Host, harness.BusOptions{Policy: harness.ShippedPolicy})
	v.daemon = harness.StartDaemon(t, v.Host, v.bus, harness.DaemonOptions{Args: args})
	v.provider, v.ui = v.dial(harness.Alice), v.dial(harness.Alice)
	v.provider.must(v.provider.manager("RegisterProvider", app, dict{}))
	v.provider.must(v.provider.manager("CreateConfig", app, "Work", dict{}), &v.config)
	return v
}

func (v *vpn) dial(uid uint32) *conn {
	v.t.Helper()
	c := &conn{Conn: v.bus.DialAs(v.t, uid), t: v.t, signals: make(chan *godbus.Signal, 1000)}
	c.Signal(c.signals)
	return c
}

func (c *conn) call(path godbus.ObjectPath, method string, args ...any) *godbus.Call {
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	defer cancel()
	return c.Object(wire.BusName, path).CallWithContext(ctx, method, 0, args...)
}

func (c *conn) manager(member string, args ...any) *godbus.Call {
	return c.call(wire.RootPath, wire.ManagerInterface+"."+member, args...)
}

func (c *conn) on(path godbus.ObjectPath, member string, args ...any) *godbus.Call {
	iface := wire.ConfigInterface
	if len(path) > len(wire.SessionRoot) && path[:len(wire.SessionRoot)] == wire.SessionRoot {
		iface = wire.SessionInterface
	}
	return c.call(path, iface+"."+member, args...)
}

func (c *conn) property(path godbus.ObjectPath, name string) any {
	c.t.Helper()
	iface := wire.ConfigInterface
	if len(path) > len(wire.SessionRoot) && path[:len(wire.SessionRoot)] == wire.SessionRoot {
		iface = wire.SessionInterface
	}
	var v godbus.Variant
	c.must(c.call(path, wire.PropertiesInterface+".Get", iface, name), &v)
	return v.Value()
}

func (c *conn) must(call *godbus.Call, results ...any) {
	c.t.Helper()
	err := call.Err
	if err == nil && len(results) > 0 {
		err = call.Store(results...)
	}
	if err != nil {
		c.t.Fatalf("%s: %v", call.Method, err)
	}
}

func (v *vpn) connect() godbus.ObjectPath {
	v.t.Helper()
	var session godbus.ObjectPath
	v.ui.must(v.ui.on(v.config, "Connect", dict{}), &session)
	return session
}

// fullTunnel is a set of parameters that covers everything but the host's own
// network.
func fullTunnel() dict {
	return dict{
		"address":       godbus.MakeVariant("10.8.0.2/24"),
		"addresses":     godbus.MakeVariant([]string{"fd08::2/64"}),
		"inclusionList": godbus.MakeVariant([]string{"0.0.0.0/0", "::/0"}),
		"exclusionList": godbus.MakeVariant([]string{harness.ServerIPv4}),
		"dnsServers":    godbus.MakeVariant([]string{harness.PrivateDNS}),
		"domainSearch":  godbus.MakeVariant([]string{"corp.example"}),
		"mtu":           godbus.MakeVariant("1400"),
	}
}

// open gives the session's channel.
func (v *vpn) open(session godbus.ObjectPath) *os.File {
	v.t.Helper()
	var fd godbus.UnixFD
	var info dict
	v.provider.must(v.provider.on(session, "OpenPacketChannel", dict{}), &fd, &info)
	f := os.NewFile(uintptr(fd), "channel")
	v.t.Cleanup(func() { f.Close() })
	return f
}

// reflect answers every echo request, of IPv4 and IPv6, that comes from the
// channel, and every UDP packet with itself, until the channel ends.
func reflect(channel *os.File) error {
	packet := make([]byte, 65536)
	for {
		n, err := channel.Read(packet)
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if turn(packet[:n]) {
			if _, err := channel.Write(packet[:n]); err != nil {
				return err
			}
		}
	}
}

// turn makes the answer of a packet, in place.
func turn(p []byte) bool {
	if len(p) < 28 {
		return false
	}
	protocol, header, size := p[9], int(p[0]&15)*4, 4
	at := 12
	if p[0]>>4 == 6 {
		protocol, header, size, at = p[6], 40, 16, 8
	}
	for i := range size {
		p[at+i], p[at+size+i] = p[at+size+i], p[at+i]
	}
	payload := p[header:]
	switch {
	case protocol == 1 && payload[0] == 8, protocol == 58 && payload[0] == 128:
		before := binary.BigEndian.Uint16(payload)
		payload[0] = map[byte]byte{8: 0, 128: 129}[payload[0]]
		adjust(payload[2:4], before, binary.BigEndian.Uint16(payload))
	case protocol == 17:
		payload[0], payload[1], payload[2], payload[3] = payload[2], payload[3], payload[0], payload[1]
	default:
		return false
	}
	return true
}

// adjust is RFC 1624: the checksum after one word changed.
func adjust(sum []byte, before, after uint16) {
	s := uint32(^binary.BigEndian.Uint16(sum)) + uint32(^before) + uint32(after)
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	binary.BigEndian.PutUint16(sum, ^uint16(s))
}

// The main job: a user connects a config of an app that has no privileges;
// packets go through it; when it is disconnected everything is as it was.
func TestMainJob(t *testing.T) {
	v := newVPN(t)
	before := v.Host.Snapshot(t, v.daemon.ResolvConf)
	session := v.connect()
	channel := v.open(session)
	go reflect(channel)
	v.provider.must(v.provider.on(session, "SetParameters", fullTunnel()))
	v.provider.must(v.provider.on(session, "NotifyConnectionStateChanged", "connected", dict{}))
	if s := v.ui.property(v.config, "State"); s != "connected" {
		t.Errorf("state %v", s)
	}
	clear := v.Clear(t)
	v.Host.Run(t, "ping", "-c3", "-i0.05", "-W2", "203.0.113.7")
	v.Host.Run(t, "ping", "-c3", "-i0.05", "-W2", "2001:db8:113::7")
	if n := clear.Count(t, harness.To(harness.InternetIPv4)); n != 0 {
		t.Errorf("%d packets to an included block in clear", n)
	}
	v.Host.Run(t, "ping", "-c1", "-W2", harness.ServerIPv4)
	if n := clear.Count(t, harness.To(harness.ServerIPv4+"/32")); n != 1 {
		t.Errorf("%d packets to the excluded server in clear", n)
	}
	statistics := v.ui.property(session, "Statistics").(map[string]uint64)
	if statistics["txPackets"] < 6 || statistics["rxPackets"] < 6 {
		t.Errorf("statistics %v", statistics)
	}
	if text := v.Host.ReadFile(t, v.daemon.ResolvConf); !contains(text, harness.PrivateDNS, "corp.example") {
		t.Errorf("resolv.conf:\n%s", text)
	}
	link := v.ui.property(session, "Interface").(string)
	if _, err := net.InterfaceByName(link); err == nil {
		t.Errorf("%s is in the test's own namespace", link)
	}
	v.ui.must(v.ui.on(v.config, "Disconnect", dict{}))
	v.Host.RequireSnapshot(t, before, v.daemon.ResolvConf)
	v.daemon.Stop(t)
	v.Host.RequireSnapshot(t, before, v.daemon.ResolvConf)
}

func contains(text string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}
