package ui

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
)

func TestDial(t *testing.T) {
	d, err := Dial(t.Context(), clienttest.Bus(t))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, err = Dial(t.Context(), "unix:path=/nonexistent")
	if f, ok := errors.AsType[*Error](err); !ok || f.Code != ExitNotRunning || !strings.Contains(err.Error(), "cannot reach the bus") {
		t.Errorf("without a bus: %v", err)
	}
}

const (
	config  = "/config/1"
	session = "/session/2"
)

// change is one of the config, as it is with a session.
func change(kind client.ChangeKind, session string, state client.State, reason string) client.Change {
	return client.Change{Kind: kind, Config: &client.ConfigProperties{Path: config, Session: session, State: state, FailureReason: reason}}
}

// Followed to the end, whatever else changes; and what is from before the
// session says nothing about it.
func TestFollow(t *testing.T) {
	before := change(client.Added, "/session/1", client.StateConnected, "")
	connecting := change(client.Changed, session, client.StateConnecting, "")
	connected := change(client.Changed, session, client.StateConnected, "")
	other := client.Change{Kind: client.Changed, Config: &client.ConfigProperties{Path: "/config/2", State: client.StateFailed}}
	up := []client.Change{before, other, change(client.Changed, "", client.StateIdle, ""), connecting, connecting, connected}
	for _, tt := range []struct {
		name string
		then []client.Change
		want string
	}{
		{"the user ends it", []client.Change{change(client.Changed, "", client.StateIdle, "")}, "connecting connected; ended by \"\""},
		{"it fails", []client.Change{change(client.Changed, "", client.StateFailed, "provider gone")}, `connecting connected; ended by "provider gone"`},
		{"another takes its place", []client.Change{change(client.Changed, "/session/3", client.StateConnecting, "")}, `connecting connected; ended by ""`},
		{"the config is removed", []client.Change{change(client.Removed, session, client.StateConnected, "")}, `connecting connected; ended by "removed"`},
		{"the bus is lost", nil, "connecting connected; the connection to the bus is closed"},
		{
			"the daemon is restarted without it",
			[]client.Change{{Kind: client.Stopped}, change(client.Changed, "", client.StateIdle, ""), {Kind: client.Synced}},
			`connecting connected; ended by "the daemon was restarted"`,
		},
		{
			"the daemon is restarted with it",
			[]client.Change{{Kind: client.Stopped}, connected, {Kind: client.Synced}, change(client.Changed, session, client.StateReconnecting, "")},
			"connecting connected reconnecting; the connection to the bus is closed",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := follow(t, func(changes chan<- client.Change) {
				for _, c := range slices.Concat(up, tt.then) {
					changes <- c
				}
				close(changes)
			}, false); got != tt.want {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
	if got := follow(t, func(changes chan<- client.Change) {
		for _, c := range up {
			changes <- c
		}
	}, true); got != "connecting connected; enough" {
		t.Errorf("told that it is enough: %s", got)
	}
}

// A daemon may be away as long as its sessions may outlive that.
func TestFollowDaemonAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if got := follow(t, func(changes chan<- client.Change) {
			changes <- change(client.Added, session, client.StateConnected, "")
			changes <- client.Change{Kind: client.Stopped}
			time.Sleep(absence - time.Second)
			changes <- client.Change{Kind: client.Synced}
			time.Sleep(time.Hour)
			changes <- client.Change{Kind: client.Stopped}
		}, false); got != "connected; vpnproviderd is not running" {
			t.Errorf("got %s", got)
		}
	})
}

// follow is Follow with changes, in words.
func follow(t *testing.T, send func(chan<- client.Change), untilConnected bool) string {
	t.Helper()
	changes := make(chan client.Change, 20)
	go send(changes)
	var told []string
	reason, ended, err := Follow(changes, config, session, func(s client.State) bool {
		told = append(told, string(s))
		return untilConnected && s == client.StateConnected
	})
	end := "enough"
	switch {
	case err != nil:
		end = err.Error()
	case ended:
		end = fmt.Sprintf("ended by %q", reason)
	}
	return strings.Join(told, " ") + "; " + end
}
