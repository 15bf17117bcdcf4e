package system

import (
	"slices"
	"strconv"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// figures are durations of something that was done several times.
type figures []time.Duration

// log prints them, and requires that the worst is within the bound: generous,
// as the machine may have other things to do.
func (f figures) log(t testing.TB, what string, bound time.Duration) {
	t.Helper()
	slices.Sort(f)
	at := func(percent int) time.Duration { return f[(len(f)-1)*percent/100].Round(100 * time.Microsecond) }
	t.Logf("%s, %d times: p50 %v, p90 %v, p99 and max %v", what, len(f), at(50), at(90), at(100))
	if worst := f[len(f)-1]; worst > bound {
		t.Errorf("%s took %v", what, worst)
	}
}

// untilClean measures how long after do began the network is as it was.
func (m *machine) untilClean(t testing.TB, do func()) time.Duration {
	t.Helper()
	begun := time.Now()
	do()
	for {
		if now, err := m.tryLook(); err == nil && now.text == m.quick {
			return time.Since(begun)
		}
		if time.Since(begun) > harness.Timeout {
			t.Fatalf("after %v there still is\n%s", harness.Timeout, m.look(t).text)
		}
		time.Sleep(time.Millisecond / 2) // leaves the processor to the daemon
	}
}

// A client that is killed takes all that it caused with it, at once. The test
// is not parallel, as it measures.
func TestClientKilled(t *testing.T) {
	m := newMachine(t)
	ui := m.dial(t, harness.Alice)
	var config godbus.ObjectPath
	ui.must(ui.manager("CreateConfig", app, configName, dict{}), &config)
	var took figures
	for range 30 {
		t.Run("", func(t *testing.T) {
			client := m.startRole(t, roleClient, harness.Alice)
			client.Await(t, "registered")
			ui.must(ui.on(config, "Connect", dict{}))
			client.Await(t, "configured")
			m.requirePresence(t, configured())
			took = append(took, m.untilClean(t, client.Kill))
		})
		if got := ui.property(config, "FailureReason"); got != wire.ReasonProviderGone {
			t.Fatalf("FailureReason %q", got)
		}
	}
	took.log(t, "from the kill of the client to the host's network as it was", time.Second)
	m.Host.RequireSnapshot(t, m.before, resolvConf)
}

// The tunnel ends with its client, whoever else has the channel by then.
func TestClientKilledWithChild(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.provider.must(v.provider.manager("UnregisterProvider", app, dict{}))
	parent := v.startRole(t, roleParent, harness.Alice)
	parent.Await(t, "registered")
	v.connect()
	child, err := strconv.Atoi(parent.Await(t, `child (\d+)`)[1])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(child, unix.SIGKILL)
	parent.Await(t, "configured")
	v.requirePresence(t, configured())
	t.Logf("clean after %v", v.untilClean(t, parent.Kill))
	if err := unix.Kill(child, 0); err != nil {
		t.Errorf("the child does not live: %v", err)
	}
	v.ui.traceTo("config failed (provider gone)", v.config)
}

// A client that lives and has its channel, but is the provider no more.
func TestProviderGoneWithChannel(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	for name, end := range map[string]func(*vpn){
		"bus connection closed": func(v *vpn) { v.provider.Close() },
		"unregistered":          func(v *vpn) { v.provider.must(v.provider.manager("UnregisterProvider", "", dict{})) },
		"replaced": func(v *vpn) {
			v.ui.must(v.ui.manager("RegisterProvider", app, dict{"replace": godbus.MakeVariant(true)}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := m.party(t, harness.Alice, app)
			_, channel := v.establish()
			v.ping(t, "1", includedIPv4)
			took := v.untilClean(t, func() { end(v) })
			t.Logf("clean after %v", took)
			channel.awaitEnd(t)
			v.ui.traceTo("config failed (provider gone)", v.config)
			v.ui.manager("UnregisterProvider", app, dict{})
		})
	}
}
