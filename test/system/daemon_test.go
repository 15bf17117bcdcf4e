package system

import (
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// TestDaemonLifecycle starts the daemon, kills it, starts it on what that left,
// stops it, and cleans up: a host on which nobody connected stays as it was.
func TestDaemonLifecycle(t *testing.T) {
	t.Parallel()
	host := harness.NewTopology(t).Host
	bus := harness.StartBus(t, host, harness.BusOptions{Policy: harness.ShippedPolicy})
	d := harness.NewDaemon(t, host, bus, harness.DaemonOptions{})
	before := host.Snapshot(t, d.ResolvConf)
	manager := bus.DialAs(t, harness.Alice).Object("org.vpnprovider1", "/org/vpnprovider1")

	version := func() string {
		t.Helper()
		v, err := manager.GetProperty("org.vpnprovider1.Manager.Version")
		if err != nil {
			t.Fatalf("the daemon does not tell its version: %v", err)
		}
		return v.Value().(string)
	}
	d.Start(t)
	first := version()
	d.Kill9()
	d.Start(t)
	if second := version(); second != first || first == "" {
		t.Errorf("version %q, then %q", first, second)
	}
	d.Stop(t)
	if _, err := manager.GetProperty("org.vpnprovider1.Manager.Version"); err == nil {
		t.Error("a stopped daemon answers")
	}
	d.Cleanup(t)
	d.Cleanup(t)
	host.RequireSnapshot(t, before, d.ResolvConf)
}
