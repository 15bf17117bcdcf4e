package dbus_test

import (
	"regexp"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/dbus"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// The provider gets a token and where to bring it; nobody else does, and what
// is not known is refused.
func TestCreatePacketToken(t *testing.T) {
	b := newBench(t, func(o *dbus.Options) {
		o.PacketSockets = dbus.PacketSockets{SeqPacket: "/run/here/packets.sock", Stream: "/run/here/packets.stream"}
	})
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	var token string
	var sockets map[string]any
	p.must(p.session(session, "CreatePacketToken", dict{}), &token, &sockets)
	if diff := cmp.Diff(map[string]any{"seqpacket": "/run/here/packets.sock", "stream": "/run/here/packets.stream"}, sockets); diff != "" {
		t.Errorf("sockets: %s", diff)
	}
	if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(token) {
		t.Errorf("token %q", token)
	}
	attach, err := b.manager.ClaimToken(harness.Alice, token)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs, err := b.NewChannel(driver.FormatStream)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if err := attach(theirs, driver.FormatStream); err != nil {
		t.Error(err)
	}

	p.refused(p.session(session, "CreatePacketToken", dict{"format": godbus.MakeVariant("packet")}), wire.ErrInvalidParameter)
	same, root, stranger := b.client(harness.Alice), b.client(0), b.client(harness.Bob)
	same.refused(same.session(session, "CreatePacketToken", dict{}), wire.ErrNotOwner)
	root.refused(root.session(session, "CreatePacketToken", dict{}), wire.ErrNotOwner)
	stranger.refused(stranger.session(session, "CreatePacketToken", dict{}), wire.ErrNotFound)
	for range 16 {
		p.must(p.session(session, "CreatePacketToken", dict{}))
	}
	p.refused(p.session(session, "CreatePacketToken", dict{}), wire.ErrLimitExceeded)
	p.must(p.session(session, "Disconnect", dict{}))
	p.refused(p.session(session, "CreatePacketToken", dict{}), wire.ErrNotFound)
}
