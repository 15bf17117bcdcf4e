package driver_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/vpnprovider/vpnproviderd/driver"
)

func fileConfig(name string) driver.FileConfig {
	return driver.FileConfig{
		File: "/etc/" + name + ".toml", App: app, Name: name, Owner: 1000, Data: driver.Data{"server": "one"},
	}
}

func (b *bench) setFiles(files []driver.FileConfig, bad ...string) {
	b.t.Helper()
	if err := b.SetFiles(b.t.Context(), files, bad); err != nil {
		b.t.Error(err)
	}
}

// again is the daemon after a restart.
func (b *bench) again() {
	b.t.Helper()
	m, err := driver.NewManager(b.Options())
	if err != nil {
		b.t.Fatal(err)
	}
	b.Manager = m
}

// What the administrator's files say is told to the provider once, however
// often they are read, and is not for others to change.
func TestFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		f := fileConfig("Office")
		b.setFiles([]driver.FileConfig{f})
		b.observed("added config Office", ":1.1 gets created Office")
		b.setFiles([]driver.FileConfig{f})
		b.observed()
		id := driver.NewConfigID(1000, app, "Office")
		c, err := b.Config(ui, id)
		if err != nil || c.Source != driver.SourcePlatform || c.Data["server"] != "one" {
			t.Errorf("%+v, %v", c, err)
		}
		for _, by := range []driver.Caller{ui, provider, root} {
			yes := true
			kind(t, b.RemoveConfig(by, id), driver.KindNotAuthorized)
			kind(t, b.DestroyConfig(by, id), driver.KindNotAuthorized)
			kind(t, b.UpdateConfig(t.Context(), by, id, driver.ConfigChanges{AutoConnect: &yes}), driver.KindNotAuthorized)
			kind(t, b.UpdateConfig(t.Context(), by, id, driver.ConfigChanges{Lockdown: &yes}), driver.KindNotAuthorized)
		}
		kind(t, b.RemoveConfig(stranger, id), driver.KindNotFound)
		b.observed()

		f.Data, f.AutoConnect = driver.Data{"server": "two"}, true
		b.setFiles([]driver.FileConfig{f})
		b.observed(`config Office: idle session 0 ""`)
		if c, _ := b.Config(ui, id); c.Data["server"] != "two" || !c.AutoConnect {
			t.Errorf("%+v", c)
		}

		b.connect(id)
		b.Log()
		if err := b.ForgetProvider(ui, app); err != nil {
			t.Error(err)
		}
		if list := b.Configs(ui); len(list) != 1 || list[0].State != driver.Idle {
			t.Errorf("after ForgetProvider: %+v", list)
		}
		b.connect(id)
		b.Log()
		b.setFiles(nil)
		b.observed("session 2: disconnecting", `config Office: disconnecting session 2 ""`, `:1.1 gets disconnected "removed" of session 2`,
			"undo", `config Office: idle session 0 "removed"`, "gone session 2", ":1.1 gets removed Office", "gone config Office")
		b.clean()
	})
}

// A file that is bad now keeps the config of its last good version, also over a
// restart; one that is gone does not.
func TestBadFile(t *testing.T) {
	b := newBench(t)
	office, home := fileConfig("Office"), fileConfig("Home")
	b.setFiles([]driver.FileConfig{office, home})
	b.Log()
	b.setFiles([]driver.FileConfig{home}, office.File)
	b.observed()
	b.again()
	b.setFiles(nil, office.File)
	b.observed("gone config Home")
	// The file is good again, with another name in it.
	office.Name = "Office 2"
	b.setFiles([]driver.FileConfig{office})
	b.observed("gone config Office", "added config Office 2")
}

// What happens while the provider is away, and the daemon too, is told when it
// comes: what was created, and what was removed if its creation was told.
func TestFilesWhileAway(t *testing.T) {
	b := newBench(t)
	known, unknown := fileConfig("Known"), fileConfig("Unknown")
	b.setFiles([]driver.FileConfig{known})
	b.ConnectionGone(provider.Conn)
	b.setFiles([]driver.FileConfig{known, unknown})
	b.again()
	later := fileConfig("Later")
	b.setFiles([]driver.FileConfig{later})
	b.Log()
	if _, err := b.RegisterProvider(provider, app, driver.ProviderOptions{}, false); err != nil {
		t.Fatal(err)
	}
	b.observed(":1.1 gets removed Known", ":1.1 gets created Later")
	b.ConnectionGone(provider.Conn)
	b.again()
	b.setFiles([]driver.FileConfig{later})
	b.RegisterProvider(provider, app, driver.ProviderOptions{}, false)
	b.observed()
}

// The administrator has the name, whoever made a config of it before.
func TestFileInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.connect(b.work)
		b.Log()
		f := fileConfig("Work")
		b.setFiles([]driver.FileConfig{f})
		b.observed("session 1: disconnecting", `config Work: disconnecting session 1 ""`, `:1.1 gets disconnected "removed" of session 1`,
			"undo", `config Work: idle session 0 "removed"`, "gone session 1", ":1.1 gets removed Work", "gone config Work",
			"added config Work", ":1.1 gets created Work")
		_, err := b.CreateConfig(provider, driver.NewConfig{App: app, Name: "Work", Owner: 1000})
		kind(t, err, driver.KindAlreadyExists)
		b.clean()
	})
}

// The limits are for users.
func TestFilesBeyondLimits(t *testing.T) {
	b := newBench(t)
	for i := range 127 {
		b.create(provider, fmt.Sprint(i))
	}
	b.setFiles([]driver.FileConfig{fileConfig("Office")})
	if err := b.RemoveConfig(ui, b.work); err != nil {
		t.Fatal(err)
	}
	b.create(provider, "one more")
}

// A file's lockdown is in force before its config is there, and ends when a file
// says so; not because the file is gone.
func TestFileLockdown(t *testing.T) {
	b := newBench(t)
	f := fileConfig("Office")
	f.Lockdown = true
	b.setFiles([]driver.FileConfig{f})
	if log := b.Log(); len(log) < 2 || log[0] != "lock" || !slices.Contains(log, "added config Office") {
		t.Errorf("%q", log)
	}
	f.Lockdown = false
	b.setFiles([]driver.FileConfig{f})
	if b.Locked() {
		t.Error("the lockdown is in force")
	}
	f.Lockdown = true
	b.setFiles([]driver.FileConfig{f})
	b.setFiles(nil)
	b.again()
	if !b.Locked() || !b.WantsLockdown() {
		t.Error("the lockdown has ended with its file")
	}
	f.Lockdown = false
	b.setFiles([]driver.FileConfig{f})
	if b.Locked() {
		t.Error("the file is back, without lockdown, and it is in force")
	}
}

// What cannot be done is told, and what can be is done.
func TestFilesFail(t *testing.T) {
	b := newBench(t)
	b.setFiles([]driver.FileConfig{fileConfig("Office")})
	b.Fail("save", true)
	changed, other := fileConfig("Office"), fileConfig("Other")
	changed.Data = nil
	if err := b.SetFiles(t.Context(), []driver.FileConfig{changed, other}, nil); err == nil {
		t.Error("no error")
	}
	if list := b.Configs(ui); len(list) != 2 || list[0].Data["server"] != "one" {
		t.Errorf("%+v", list)
	}
	b.Fail("save", false)
	b.Fail("lock", true)
	other.Lockdown = true
	if err := b.SetFiles(t.Context(), []driver.FileConfig{changed, other}, nil); err == nil {
		t.Error("no error")
	}
	if list := b.Configs(ui); len(list) != 3 || !b.WantsLockdown() || b.Locked() {
		t.Errorf("%+v", list)
	}
	b.Fail("lock", false)
	b.setFiles([]driver.FileConfig{changed, other})
	if !b.Locked() {
		t.Error("no lockdown")
	}
}
