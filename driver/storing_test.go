package driver_test

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/vpnprovider/vpnproviderd/driver"
)

func (b *bench) stored(id driver.ConfigID) driver.Record {
	b.t.Helper()
	records, err := b.Load()
	if err != nil {
		b.t.Fatal(err)
	}
	at := slices.IndexFunc(records, func(r driver.Record) bool { return r.ID() == id })
	if at < 0 {
		b.t.Fatalf("config %s is not stored", id)
	}
	return records[at]
}

// While a change of a config goes to the disk, all go on that do not change
// configs, and what happens to the config is stored as well.
func TestUpdateHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		release := b.Hold("save")
		done, removed := make(chan error, 1), make(chan error, 1)
		data := driver.Data{"server": "x"}
		go func() { done <- b.UpdateConfig(t.Context(), ui, b.work, driver.ConfigChanges{Data: &data}) }()
		synctest.Wait()
		if list := b.Configs(ui); len(list) != 1 || len(list[0].Data) != 0 {
			t.Errorf("before the change is stored there is %v", list)
		}
		s := b.connect(b.work)
		b.setParameters(s)
		b.notify(s)
		go func() { removed <- b.RemoveConfig(ui, b.work) }()
		synctest.Wait()
		b.state(driver.Connected, "")
		b.Fail("delete", true)
		release()
		if err := <-done; err != nil {
			t.Error(err)
		}
		kind(t, <-removed, driver.KindFailed)
		c, err := b.Config(ui, b.work)
		r := b.stored(b.work)
		if err != nil || c.Data["server"] != "x" || c.LastConnected == 0 || r.Data["server"] != "x" || r.LastConnected != c.LastConnected {
			t.Errorf("there is %+v (%v), stored %+v", c, err, r)
		}
		b.Shutdown()
	})
}

// An update that cannot be stored changes nothing, also where something else
// happened meanwhile.
func TestUpdateFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		release := b.Hold("save")
		b.Fail("save", true)
		done := make(chan error)
		yes := true
		go func() { done <- b.UpdateConfig(t.Context(), ui, b.work, driver.ConfigChanges{AutoConnect: &yes}) }()
		synctest.Wait()
		s := b.connect(b.work)
		b.setParameters(s)
		b.notify(s)
		b.Fail("save", false) // too late for the update
		release()
		kind(t, <-done, driver.KindFailed)
		if r := b.stored(b.work); r.AutoConnect || r.LastConnected == 0 {
			t.Errorf("stored is %+v", r)
		}
		b.Shutdown()
	})
}
