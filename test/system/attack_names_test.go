package system

import (
	"net/netip"
	"testing"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Names are asked of everybody on the LAN, whatever the routes say: LLMNR and
// multicast DNS. (What systemd-resolved does is tested with it, in a container.)
func TestAttackNames(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	clear := v.Clear(t)
	groups := map[string]uint16{"224.0.0.252": 5355, "ff02::1:3": 5355, "224.0.0.251": 5353, "ff02::fb": 5353}
	const rounds = 5
	ask := func() (refused int) {
		t.Helper()
		for range rounds {
			for group, port := range groups {
				if err := v.send(t, group, port, "h0"); err != nil {
					refused++
				}
			}
		}
		return refused
	}
	questions := func() int { return clear.Count(t, toPort(5355)) + clear.Count(t, toPort(5353)) }
	v.bareTunnel(t, func(string) {
		if n := ask(); n != 0 {
			t.Errorf("control: %d are refused", n)
		}
		awaitCount(t, "control: LLMNR", clear, 2*rounds, toPort(5355))
		awaitCount(t, "control: multicast DNS", clear, 2*rounds, toPort(5353))
	})
	session := v.connect()
	v.open(session)
	v.configure(session, everything())
	before := questions()
	if n := ask(); n != rounds*len(groups) {
		t.Errorf("%d of %d are refused", n, rounds*len(groups))
	}
	v.ping(t, "1", includedIPv4)
	if n := questions() - before; n != 0 {
		t.Errorf("%d questions in clear", n)
	}

	// A protected socket is the app's own business.
	fd := v.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	v.provider.must(v.protect(session, fd))
	if err := unix.Sendto(fd, []byte("question"), 0, sockaddr(netip.MustParseAddrPort("224.0.0.251:5353"))); err != nil {
		t.Error(err)
	}
	awaitCount(t, "of a protected socket", clear, 2*rounds+1, toPort(5353))

	// Who may use the LAN may ask it.
	lan := everything()
	lan["allowLan"] = godbus.MakeVariant(true)
	v.configure(session, lan)
	if n := ask(); n != 0 {
		t.Errorf("with allowLan %d are refused", n)
	}
	v.configure(session, everything())
	if n := ask(); n != rounds*len(groups) {
		t.Errorf("again: %d of %d are refused", n, rounds*len(groups))
	}
	v.disconnect()
	if n := ask(); n != 0 {
		t.Errorf("after the end %d are refused", n)
	}
}
