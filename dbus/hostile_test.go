package dbus_test

import (
	"errors"
	"fmt"
	"net"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/stream/streamtest"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// alive fails the test if the service has ended.
func (b *bench) alive(c *client) {
	b.t.Helper()
	c.must(c.manager("ListConfigs"))
	select {
	case err := <-b.served:
		b.t.Fatalf("the service has ended: %v", err)
	default:
	}
}

// Anybody can send the service a signal. None ends it, whatever godbus thinks
// of it.
func TestHostileSignals(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.client(harness.Alice)
	streamtest.Signals(t, b.bus.DialRaw(t, harness.Bob), wire.BusName)
	b.alive(c)
}

// A provider that gets packets by signal answers pings, with whatever it likes.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	root := b.client(0)
	p := b.bus.DialRaw(t, 0)
	register := harness.Encode(t, managerCall("RegisterProvider", app, dict{"packetSignals": godbus.MakeVariant(true)}), 2)
	if _, err := p.Write(register); err != nil {
		t.Fatal(err)
	}
	if err := awaitReply(p, 2); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- answerPings(t, p) }()
	var config godbus.ObjectPath
	root.must(root.manager("CreateConfig", app, "Work", dict{}), &config)
	root.must(root.config(config, "Connect", dict{}))
	for range 5 * 128 { // it waits where 256 are not answered
		if err := b.Tunnel().Events.Packet([]byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	b.alive(root)
	p.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the bus ended the connection: %v", err)
	}
}

// awaitReply reads up to the answer to the call with that number.
func awaitReply(conn *net.UnixConn, serial uint32) error {
	for {
		m, err := godbus.DecodeMessage(conn)
		if err != nil {
			return err
		}
		if m.Headers[godbus.FieldReplySerial].Value() != serial {
			continue
		}
		if m.Type == godbus.TypeError {
			return fmt.Errorf("refused: %v", m.Body)
		}
		return nil
	}
}

// answerPings does so until the connection ends.
func answerPings(t *testing.T, conn *net.UnixConn) error {
	t.Helper()
	for {
		m, err := godbus.DecodeMessage(conn)
		if err == nil && m.Type == godbus.TypeMethodCall {
			err = streamtest.Answer(t, conn, m)
		}
		if err != nil {
			return err
		}
	}
}
