package dbus_test

import (
	"io"
	"os"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// The provider captures its session without being asked, the user's other
// programs where polkit allows it, root always, and nobody else.
func TestCapture(t *testing.T) {
	a := &authority{yes: []string{"org.vpnprovider1.manage-own", "org.vpnprovider1.connect", "org.vpnprovider1.trust-provider", "org.vpnprovider1.manage-others"}, no: []string{"org.vpnprovider1.capture"}}
	b := newPolkitBench(t, a)
	p, config := b.provider()
	var session godbus.ObjectPath
	p.must(p.config(config, "Connect", dict{}), &session)
	ui, stranger := b.client(harness.Alice), b.client(harness.Bob)
	ui.refused(ui.session(session, "OpenCapture", dict{}), wire.ErrNotAuthorized)
	stranger.refused(stranger.session(session, "OpenCapture", dict{}), wire.ErrNotFound)
	p.refused(p.session(session, "OpenCapture", dict{"x": godbus.MakeVariant(true)}), wire.ErrInvalidParameter)
	for _, c := range []*client{p, b.client(0)} {
		var fd godbus.UnixFD
		var info dict
		c.must(c.session(session, "OpenCapture", dict{}), &fd, &info)
		stream := os.NewFile(uintptr(fd), "capture")
		// The end of it shows that the daemon kept no copy of what it gave.
		if _, err := io.Copy(io.Discard, stream); err != nil || len(info) != 0 {
			t.Error(info, err)
		}
		stream.Close()
	}
	p.refused(p.session(session, "OpenCapture", dict{}), wire.ErrLimitExceeded)
}
