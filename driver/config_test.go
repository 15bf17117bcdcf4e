package driver_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/vpnprovider/vpnproviderd/driver"
)

func TestConfigID(t *testing.T) {
	if id := driver.NewConfigID(1000, "com.example.Demo", "Work"); id != "592c964e9d4a124ba3227d2648208207" {
		t.Error(id)
	}
}

func TestCreateConfigRefuses(t *testing.T) {
	b := newBench(t)
	for _, tt := range []struct {
		app, name string
		data      driver.Data
		want      driver.Kind
	}{
		{app, "", nil, driver.KindInvalidParameter},
		{app, strings.Repeat("x", 256), nil, driver.KindInvalidParameter},
		{app, "a\nb", nil, driver.KindInvalidParameter},
		{app, "a\x00b", nil, driver.KindInvalidParameter},
		{app, "a\x1b[31m", nil, driver.KindInvalidParameter},
		{app, "\xff", nil, driver.KindInvalidParameter},
		{"demo", "x", nil, driver.KindInvalidParameter},
		{"com..demo", "x", nil, driver.KindInvalidParameter},
		{"com.1demo", "x", nil, driver.KindInvalidParameter},
		{"com.-demo", "x", nil, driver.KindInvalidParameter},
		{"com.demo/x", "x", nil, driver.KindInvalidParameter},
		{"a." + strings.Repeat("b", 254), "x", nil, driver.KindInvalidParameter},
		{app, "Work", nil, driver.KindAlreadyExists},
		{app, "data", driver.Data{"k\n": "v"}, driver.KindInvalidParameter},
		{app, "data", driver.Data{"k": "v\x00"}, driver.KindInvalidParameter},
		{app, "data", driver.Data{"k": strings.Repeat("v", 256)}, driver.KindInvalidParameter},
		{app, "data", driver.Data{"k": []any{map[string]any{"x": []string{"\x07"}}}}, driver.KindInvalidParameter},
		{app, "data", driver.Data{"k": struct{}{}}, driver.KindInvalidParameter},
		{app, "data", driver.Data{"k": nil}, driver.KindInvalidParameter},
		{app, "data", driver.Data{"k": make([]int16, 40000)}, driver.KindLimitExceeded},
		{app, "data", driver.Data{"k": make([]string, 10000)}, driver.KindLimitExceeded},
	} {
		_, err := b.CreateConfig(provider, driver.NewConfig{App: tt.app, Name: tt.name, Owner: 1000, Data: tt.data})
		if err == nil || driver.KindOf(err) != tt.want {
			t.Errorf("%q %q %v: %v", tt.app, tt.name, tt.data, err)
		}
	}
	_, err := b.CreateConfig(stranger, driver.NewConfig{App: app, Name: "x", Owner: 1000})
	kind(t, err, driver.KindNotAuthorized)
	b.Fail("save", true)
	_, err = b.CreateConfig(provider, driver.NewConfig{App: app, Name: "x", Owner: 1000})
	kind(t, err, driver.KindFailed)
	b.observed()
	if n := len(b.Configs(root)); n != 1 {
		t.Errorf("%d configs", n)
	}
}

func TestConfigLimits(t *testing.T) {
	b := newBench(t)
	for i := range 127 {
		b.create(provider, fmt.Sprint(i))
	}
	_, err := b.CreateConfig(provider, driver.NewConfig{App: app, Name: "one more", Owner: 1000})
	kind(t, err, driver.KindLimitExceeded)
	for uid := range uint32(7) {
		for i := range 128 {
			by := driver.Caller{UID: 2000 + uid, Conn: ":1.9"}
			if _, err := b.CreateConfig(by, driver.NewConfig{App: app, Name: fmt.Sprint(i), Owner: by.UID}); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err = b.CreateConfig(stranger, driver.NewConfig{App: app, Name: "x", Owner: stranger.UID})
	kind(t, err, driver.KindLimitExceeded)
}

// A config that is removed in lockdown is kept, and counts, or making and removing
// such ones would fill the disk.
func TestConfigLimitsCountLockdowns(t *testing.T) {
	b := newBench(t)
	removeLocked := func(by driver.Caller, name string) error {
		id, err := b.CreateConfig(by, driver.NewConfig{App: app, Name: name, Owner: by.UID})
		if err != nil {
			return err
		}
		b.mustLockdown(by, id, true)
		return b.DestroyConfig(by, id)
	}
	for i := range 127 {
		if err := removeLocked(provider, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	kind(t, removeLocked(provider, "one more"), driver.KindLimitExceeded)
	// The ones that there were may come and go.
	for range 3 {
		if err := removeLocked(provider, "7"); err != nil {
			t.Error(err)
		}
	}
	for uid := range uint32(7) {
		for i := range 128 {
			if err := removeLocked(driver.Caller{UID: 2000 + uid, Conn: ":1.9"}, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	kind(t, removeLocked(stranger, "x"), driver.KindLimitExceeded)
	if n := len(b.records()); n != 1024 {
		t.Errorf("%d records are stored", n)
	}
	if err := b.Unlock(t.Context(), root, true); err != nil {
		t.Fatal(err)
	}
	if n := len(b.records()); n != 1 {
		t.Errorf("%d records are stored once the lockdowns are ended", n)
	}
	b.create(provider, "one more")
}

// One that is kept only until its provider is told does not count.
func TestConfigLimitsWithoutTheProvider(t *testing.T) {
	b := newBench(t)
	b.ConnectionGone(provider.Conn)
	if err := b.RemoveConfig(ui, b.work); err != nil {
		t.Fatal(err)
	}
	for i := range 128 {
		b.create(ui, fmt.Sprint(i))
	}
	if n := len(b.records()); n != 129 {
		t.Errorf("%d records are stored", n)
	}
}

// records is what the next process would find.
func (b *bench) records() []driver.Record {
	b.t.Helper()
	records, err := b.Load()
	if err != nil {
		b.t.Fatal(err)
	}
	return records
}

// What another program of the user creates and removes is told to the
// provider, once: at once, or when it comes.
func TestPlatformConfigs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.create(ui, "Told")
		b.observed("added config Told", ":1.1 gets created Told")
		b.ConnectionGone(provider.Conn)
		later := b.create(ui, "Later")
		b.observed("added config Later")
		c, _ := b.Config(ui, later)
		if c.Source != driver.SourcePlatform {
			t.Errorf("source %q", c.Source)
		}
		b.RemoveConfig(ui, b.create(ui, "Never seen"))
		b.RemoveConfig(ui, b.work)
		b.Log()

		// The daemon is started again meanwhile.
		m, err := driver.NewManager(b.Options())
		if err != nil {
			t.Fatal(err)
		}
		b.Manager = m
		done, err := b.RegisterProvider(provider, app, driver.ProviderOptions{}, false)
		if err != nil || len(done.Configs) != 2 || !done.New {
			t.Errorf("%+v, %v", done, err)
		}
		b.observed(":1.1 gets removed Work", ":1.1 gets created Later")
		b.ConnectionGone(provider.Conn)
		b.RegisterProvider(provider, app, driver.ProviderOptions{}, false)
		b.observed()
	})
}

func TestRemoveWhileConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.connect(b.work)
		b.Log()
		if err := b.RemoveConfig(ui, b.work); err != nil {
			t.Fatal(err)
		}
		b.observed("session 1: disconnecting", `config Work: disconnecting session 1 ""`, `:1.1 gets disconnected "removed" of session 1`,
			"undo", `config Work: idle session 0 "removed"`, "gone session 1", ":1.1 gets removed Work", "gone config Work")
		kind(t, b.RemoveConfig(ui, b.work), driver.KindNotFound)
		b.clean()
	})
}

func TestDestroyByTheProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.connect(b.work)
		b.Log()
		if err := b.DestroyConfig(provider, b.work); err != nil {
			t.Fatal(err)
		}
		b.observed("session 1: disconnecting", `config Work: disconnecting session 1 ""`, `:1.1 gets disconnected "removed" of session 1`,
			"undo", `config Work: idle session 0 "removed"`, "gone session 1", "gone config Work")
		b.clean()
		if err := b.DestroyConfig(ui, b.create(provider, "Other")); err != nil {
			t.Fatal(err)
		}
		b.observed("added config Other", ":1.1 gets removed Other", "gone config Other")
	})
}

func TestConfigsPersist(t *testing.T) {
	b := newBench(t)
	data := driver.Data{"server": "vpn.example.org", "port": uint16(443)}
	if err := b.UpdateConfig(t.Context(), ui, b.work, driver.ConfigChanges{Data: &data}); err != nil {
		t.Fatal(err)
	}
	m, err := driver.NewManager(b.Options())
	if err != nil {
		t.Fatal(err)
	}
	c, err := m.Config(ui, b.work)
	if err != nil || c.Data["server"] != "vpn.example.org" || c.Data["port"] != uint16(443) || c.Source != driver.SourceProvider {
		t.Errorf("%+v, %v", c, err)
	}
	bad := driver.Data{"server": "\n"}
	kind(t, b.UpdateConfig(t.Context(), ui, b.work, driver.ConfigChanges{Data: &bad}), driver.KindInvalidParameter)
	if c, _ := b.Config(ui, b.work); c.Data["server"] != "vpn.example.org" {
		t.Errorf("a refused change changed %v", c.Data)
	}
}

func TestProviders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		_, err := b.RegisterProvider(ui, app, driver.ProviderOptions{}, false)
		kind(t, err, driver.KindAlreadyExists)
		if _, err := b.RegisterProvider(provider, "", driver.ProviderOptions{DisplayName: "Demo"}, false); err != nil {
			t.Error(err)
		}
		if list := b.ListProviders(ui); len(list) != 1 || list[0].DisplayName != "Demo" || !list[0].Registered {
			t.Errorf("%+v", list)
		}
		if _, err := b.RegisterProvider(provider, "com.example.Second", driver.ProviderOptions{}, false); err != nil {
			t.Error(err)
		}
		_, err = b.RegisterProvider(provider, "", driver.ProviderOptions{}, false)
		kind(t, err, driver.KindInvalidParameter)
		_, err = b.RegisterProvider(provider, app, driver.ProviderOptions{DisplayName: "a\nb"}, false)
		kind(t, err, driver.KindInvalidParameter)
		kind(t, b.UnregisterProvider(ui, app), driver.KindNotOwner)
		kind(t, b.UnregisterProvider(ui, "com.example.Unknown"), driver.KindNotFound)
		if err := b.ForgetProvider(ui, app); err != nil {
			t.Error(err)
		}
		b.observed(":1.1 gets removed Work", "gone config Work")
		kind(t, b.ForgetProvider(ui, "com.example.Unknown"), driver.KindNotFound)
		if err := b.AskForConfig(t.Context(), ui, app, "showAddDialog", nil); err != nil {
			t.Error(err)
		}
		b.observed(`:1.1 gets showAddDialog ""`)
	})
}

// What a provider that never comes back would be told is not kept without end.
func TestForgottenConfigsAreBounded(t *testing.T) {
	b := newBench(t)
	for i := range 300 {
		if _, err := b.RegisterProvider(provider, app, driver.ProviderOptions{}, false); err != nil {
			t.Fatal(err)
		}
		id := b.create(provider, fmt.Sprint(i))
		b.ConnectionGone(provider.Conn)
		if err := b.RemoveConfig(ui, id); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 300 {
		other := fmt.Sprintf("com.example.App%d", i)
		if _, err := b.RegisterProvider(provider, other, driver.ProviderOptions{}, false); err != nil {
			kind(t, err, driver.KindLimitExceeded)
			if i < 128 {
				t.Errorf("app %d was refused", i)
			}
			break
		}
		id, err := b.CreateConfig(provider, driver.NewConfig{App: other, Name: "x", Owner: provider.UID})
		if err != nil {
			break // the configs have a limit of their own
		}
		b.UnregisterProvider(provider, other)
		b.RemoveConfig(ui, id)
	}
	records, err := b.Load()
	if err != nil || len(records) > 2*128 {
		t.Errorf("%d records are kept, %v", len(records), err)
	}
}

// The data of all configs is limited, not only that of each: for a user, and
// in all. What a config had before an update does not count.
func TestDataLimits(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	large := func() driver.Data { return driver.Data{"x": make([]byte, 60<<10)} }
	var last driver.ConfigID
	of := func(owner uint32) (n int, err error) {
		by := driver.Caller{UID: owner}
		for ; err == nil; n++ {
			var id driver.ConfigID
			if id, err = b.CreateConfig(by, driver.NewConfig{App: app, Name: strconv.Itoa(n), Owner: owner, Data: large()}); err == nil {
				last = id
			}
		}
		return n - 1, err
	}
	n, err := of(1000)
	if driver.KindOf(err) != driver.KindLimitExceeded || !strings.Contains(err.Error(), "uid 1000") || n != 34 {
		t.Errorf("%d configs with 60 KiB, then %v", n, err)
	}
	by := driver.Caller{UID: 1000}
	same, more := large(), driver.Data{"x": make([]byte, 60<<10), "y": make([]byte, 5<<10)}
	if err := b.UpdateConfig(t.Context(), by, last, driver.ConfigChanges{Data: &same}); err != nil {
		t.Error(err)
	}
	if err := b.UpdateConfig(t.Context(), by, last, driver.ConfigChanges{Data: &more}); driver.KindOf(err) != driver.KindLimitExceeded {
		t.Errorf("more data: %v", err)
	}
	all := n
	for uid := uint32(1001); ; uid++ {
		n, err := of(uid)
		if all += n; strings.Contains(err.Error(), "all configs") {
			break
		}
	}
	if all != 204 {
		t.Errorf("%d configs with 60 KiB in all", all)
	}
	// Many small entries are not small.
	small := driver.Data{}
	for i := range 4000 {
		small[strconv.Itoa(i)] = true
	}
	if _, err := b.CreateConfig(by, driver.NewConfig{App: app, Name: "small", Owner: 1000, Data: small}); driver.KindOf(err) != driver.KindLimitExceeded {
		t.Errorf("4,000 entries: %v", err)
	}
}
