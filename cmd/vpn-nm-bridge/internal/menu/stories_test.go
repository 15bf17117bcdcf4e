package menu

import (
	"fmt"
	"regexp"
	"slices"
	"testing"
	"testing/synctest"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/nm"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// TestStories are what people and machines do to both sides.
func TestStories(t *testing.T) {
	for name, tell := range map[string]func(w *world){
		"on and off in the menu": func(w *world) {
			path := w.connected()
			w.over(path, nm.UserDisconnected)
			w.expect("disconnect 7") // and it is not activated again meanwhile
			w.state(client.StateDisconnecting)
			w.state(client.StateIdle)
			w.expect()
		},
		"off and on again at once": func(w *world) {
			path := w.connected()
			w.over(path, nm.UserDisconnected)
			w.expect("disconnect 7")
			path = w.wish() // before vpnproviderd has said anything
			w.expect("connect 7")
			w.state(client.StateDisconnecting)
			w.state(client.StateIdle)
			w.expect()
			w.newSession()
			w.state(client.StateConnecting)
			w.vpn(path, nm.VPNConnecting)
			w.state(client.StateConnected)
			w.expect(fmt.Sprintf("tell %s connected", path))
		},
		"elsewhere": func(w *world) {
			w.newSession()
			w.state(client.StateConnecting)
			w.expect("activate work")
			path := godbus.ObjectPath(fmt.Sprintf("/active/%d", w.next))
			w.state(client.StateConfigured)
			w.state(client.StateConnected)
			w.expect() // the plugin does not listen yet
			w.vpn(path, nm.VPNConnecting)
			w.expect(fmt.Sprintf("tell %s connected", path))
			w.state(client.StateDisconnecting)
			w.state(client.StateIdle)
			w.expect(fmt.Sprintf("deactivate %s", path))
			// What comes of that is no wish, also where there is a new session.
			w.newSession()
			w.state(client.StateConnecting)
			w.expect()
			w.over(path, nm.UserDisconnected)
			w.expect("activate work")
		},
		"failed": func(w *world) {
			path := w.connected()
			w.state(client.StateDisconnecting)
			w.config(client.Changed, workPath, client.StateFailed, "provider failure")
			w.expect(`update work "provider failure"`, fmt.Sprintf("tell %s failed", path))
			w.over(path, 0)
			w.expect()
			w.connectedAfterFailure()
		},
		"its app is gone": func(w *world) {
			path := w.connected()
			w.config(client.Changed, workPath, client.StateFailed, "provider gone")
			w.expect(`update work "provider gone"`, fmt.Sprintf("tell %s lost", path))
		},
		"replaced": func(w *world) {
			path := w.connected()
			w.config(client.Changed, workPath, client.StateIdle, "replaced")
			w.expect(fmt.Sprintf("deactivate %s", path))
		},
		"refused before the plugin listens": func(w *world) {
			w.answers[workPath] = client.ErrProviderNotRunning
			path := w.wish()
			w.expect("connect 7", fmt.Sprintf("update work %q", client.ErrProviderNotRunning.Error()))
			w.vpn(path, nm.VPNConnecting)
			w.expect(fmt.Sprintf("tell %s lost", path))
			w.over(path, 4)
			w.expect()
		},
		"given up while a person is asked": func(w *world) {
			w.hold = make(chan struct{})
			path := w.wish()
			w.expect("connect 7")
			w.over(path, nm.UserDisconnected)
			w.expect("disconnect 7")
			w.answers[workPath] = client.ErrFailed
			close(w.hold)
			synctest.Wait()
			w.expect(fmt.Sprintf("update work %q", client.ErrFailed.Error()))
		},
		"the time is over": func(w *world) {
			path := w.wish()
			w.newSession()
			w.state(client.StateConnecting)
			w.vpn(path, nm.VPNConnecting)
			w.over(path, nm.ConnectTimeout)
			w.expect("connect 7", "disconnect 7")
		},
		"the plugin cannot start": func(w *world) {
			path := w.wish()
			w.newSession()
			w.state(client.StateConnecting)
			w.over(path, 8)
			w.expect("connect 7", "disconnect 7")
			w.state(client.StateIdle)
			w.expect()
		},
		"another's config, which root sees": func(w *world) {
			w.changes <- client.Change{Kind: client.Added, Config: &client.ConfigProperties{
				Path: "/org/vpnprovider1/config/22222222222222222222222222222222", Name: "bob's", Owner: 1001, State: client.StateConnected,
			}}
			synctest.Wait()
			w.expect()
		},
		"the base connection ends": func(w *world) {
			path := w.connected()
			w.refuse = errRefused
			w.over(path, 3)
			w.expect("activate work")
			w.state(client.StateReconnecting)
			w.expect() // it is not tried all the time
			w.refuse = nil
			w.event(nm.Event{Kind: nm.Retry})
			w.expect("activate work")
		},
		"plugins that end at once": func(w *world) {
			w.newSession()
			w.state(client.StateConnected)
			for range maxShows {
				w.expect("activate work")
				w.over(godbus.ObjectPath(fmt.Sprintf("/active/%d", w.next)), 4)
			}
			w.expect()
		},
		"NetworkManager is restarted": func(w *world) {
			path := w.connected()
			delete(w.active, path)
			w.event(nm.Event{Kind: nm.Stopped})
			w.expect()
			w.event(nm.Event{Kind: nm.Started})
			w.expect("activate work") // with the profiles that it has kept
		},
		"NetworkManager begins without what it has kept": func(w *world) {
			kept := w.profiles
			w.event(nm.Event{Kind: nm.Stopped})
			w.profiles, w.refuse = map[godbus.ObjectPath]nm.Settings{}, errRefused
			w.event(nm.Event{Kind: nm.Started})
			w.expect()
			w.profiles, w.refuse = kept, nil
			w.event(nm.Event{Kind: nm.ProfileAdded})
			w.expect()
			w.wish()
			w.expect("connect 7")
		},
		"a list from before": func(w *world) {
			w.newSession()
			w.state(client.StateConnecting)
			w.expect("activate work")
			w.event(nm.Event{Kind: nm.ActiveList})
			w.expect()
		},
		"another's activation": func(w *world) {
			w.active["/active/77"] = nm.Active{Path: "/active/77", UUID: "another", State: nm.Activating}
			w.event(nm.Event{Kind: nm.ActiveList, Paths: []godbus.ObjectPath{"/active/77"}})
			w.over("/active/77", nm.UserDisconnected)
			w.expect()
		},
		"the profile is deleted": func(w *world) {
			path := w.connected()
			profile := w.profile()
			delete(w.profiles, profile)
			w.over(path, nm.ProfileRemoved)
			w.event(nm.Event{Kind: nm.ProfileDeleted, Path: profile})
			w.expect("disconnect 7", "add work")
		},
		"the config is removed": func(w *world) {
			path := w.connected()
			w.config(client.Removed, workPath, client.StateIdle, "removed")
			w.expect("delete work")
			w.over(path, nm.ProfileRemoved)
			w.expect()
		},
	} {
		t.Run(name, story(tell))
	}
}

// connectedAfterFailure: the reason is gone with the next session.
func (w *world) connectedAfterFailure() {
	w.t.Helper()
	w.wish()
	w.newSession()
	w.state(client.StateConnecting)
	w.expect("connect 7", `update work ""`)
}

// TestAdopts: a bridge that was killed is followed by one that goes on.
func TestAdopts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		user := User{"alice", 1000}
		settings := func(path, name string) nm.Settings {
			return user.settings(uuidOf(path), user.face(client.ConfigProperties{Path: path, App: "com.example.App"}, name, ""))
		}
		w := start(t, true, func(w *world) {
			w.profiles["/profile/work"] = settings(workPath, "work")
			w.profiles["/profile/home"] = settings(homePath, "an old name")
			w.profiles["/profile/gone"] = settings("/org/vpnprovider1/config/00000000000000000000000000000000", "gone")
			bob := settings("/org/vpnprovider1/config/11111111111111111111111111111111", "bob")
			bob["connection"]["permissions"] = godbus.MakeVariant([]string{"user:bob:"})
			w.profiles["/profile/bob"] = bob
			// Its session has ended meanwhile.
			w.active["/active/home"] = nm.Active{Path: "/active/home", UUID: uuidOf(homePath), State: nm.Activated, VPN: 5}
		})
		slices.Sort(w.notes)
		w.expect("deactivate /active/home", "delete gone", `update home ""`)
		w.stop()
		if err := <-w.done; err != nil {
			t.Error(err)
		}
		if len(w.profiles) != 1 || w.profiles["/profile/bob"] == nil {
			t.Errorf("in the end there are %v", w.profiles)
		}
	})
}

// TestNames: two configs of a name are told apart.
func TestNames(t *testing.T) {
	t.Run("same", story(func(w *world) {
		other := client.ConfigProperties{Path: homePath, App: "com.example.Other", Name: "work", Owner: 1000, State: client.StateIdle}
		w.changes <- client.Change{Kind: client.Changed, Config: &other}
		synctest.Wait()
		slices.Sort(w.notes)
		w.expect(`update work (com.example.App) ""`, `update work (com.example.Other) ""`)
		w.changes <- client.Change{Kind: client.Removed, Config: &other}
		synctest.Wait()
		w.expect("delete work (com.example.Other)", `update work ""`)
	}))
}

// TestUUID: of a config's path, for good, and of nothing else.
func TestUUID(t *testing.T) {
	if got, want := uuidOf(workPath), "592c964e-9d4a-824b-a322-7d2648208207"; got != want {
		t.Errorf("%s is %s, want %s", workPath, got, want)
	}
	if got := uuidOf(homePath); !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(got) {
		t.Errorf("%s is no UUID", got)
	}
	for _, path := range []string{"", "/", "/org/vpnprovider1/config/short", "/org/vpnprovider1/config/592c964e9d4a124ba3227d264820820g"} {
		if got := uuidOf(path); got != "" {
			t.Errorf("%q has the UUID %s", path, got)
		}
	}
}
