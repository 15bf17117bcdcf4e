package driver_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vpnprovider/vpnproviderd/driver"
)

// next is the process after one that was killed. Those who are gone are gone
// when it comes.
func (b *bench) next(gone ...string) *bench {
	b.t.Helper()
	m, err := driver.NewManager(b.Options())
	if err != nil {
		b.t.Fatal(err)
	}
	after := &bench{Manager: m, World: b.World, t: b.t, work: b.work}
	b.Log()
	err = m.Resume(b.t.Context(), b.Kept(), func(conn string) bool {
		return conn != "" && !strings.Contains(strings.Join(gone, " "), conn)
	})
	if err != nil {
		b.t.Error(err)
	}
	return after
}

// same compares what everybody can see.
func (b *bench) same(after *bench) {
	b.t.Helper()
	addresses := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreUnexported(driver.ConfigInfo{})}
	if diff := cmp.Diff(b.Configs(root), after.Configs(root), addresses); diff != "" {
		b.t.Errorf("configs (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(b.Sessions(root), after.Sessions(root), addresses); diff != "" {
		b.t.Errorf("sessions (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(b.ListProviders(provider), after.ListProviders(provider), addresses); diff != "" {
		b.t.Errorf("providers (-before +after):\n%s", diff)
	}
}

// TestResume: at every point of its life a session goes on as it was.
func TestResume(t *testing.T) {
	reconnecting := map[string]any{"address": "10.8.0.2/24", "inclusionList": []string{"10.0.0.0/8"}, "reconnect": true}
	steps := []struct {
		name string
		do   func(b *bench, s driver.SessionID)
	}{
		{"connecting", func(*bench, driver.SessionID) {}},
		{"notified", func(b *bench, s driver.SessionID) { b.notify(s) }},
		{"connected", func(b *bench, s driver.SessionID) { b.setParameters(s) }},
		{"updated", func(b *bench, s driver.SessionID) {
			if _, err := b.SetParameters(b.t.Context(), provider, s, reconnecting); err != nil {
				b.t.Error(err)
			}
		}},
		{"without uplink", func(b *bench, _ driver.SessionID) { b.SetUplink(driver.Uplink{}) }},
		{"with uplink", func(b *bench, _ driver.SessionID) { b.SetUplink(driver.Uplink{Interface: "eth0", Index: 2}) }},
		{"configured again", func(b *bench, s driver.SessionID) { b.setParameters(s) }},
	}
	for n := range steps {
		t.Run(steps[n].name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.SetUplink(driver.Uplink{Interface: "eth0", Index: 2})
				b.RegisterAgent(ui)
				s := b.connect(b.work)
				for _, step := range steps[:n+1] {
					step.do(b, s)
				}
				addresses := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
				traffic, applied := b.Tunnel().Traffic(), b.Applied()
				again := b.next()
				again.observed("resume")
				b.same(again)
				if diff := cmp.Diff(traffic, again.Tunnel().Traffic(), addresses); diff != "" {
					t.Errorf("what passes (-before +after):\n%s", diff)
				}
				if n >= 2 && !cmp.Equal(applied, again.Applied(), addresses) {
					t.Errorf("the network is %+v, was %+v", again.Applied(), applied)
				}
				// It is the same session in all it does.
				again.setParameters(s)
				again.notify(s)
				again.state(driver.Connected, "")
				if r, err := again.RegisterProvider(provider, app, driver.ProviderOptions{}, false); err != nil || r.New {
					t.Errorf("registered again: %+v, %v", r, err)
				}
				if err := again.Disconnect(ui, b.work); err != nil {
					t.Error(err)
				}
				again.state(driver.Idle, "")
				again.clean()
				if again.connect(b.work) != s+1 {
					t.Error("the next session has no new number")
				}
				again.Shutdown()
				b.end()
			})
		})
	}
}

// end stops what a process that was killed would not go on with: its timers.
func (b *bench) end() {
	b.t.Helper()
	b.Shutdown()
	synctest.Wait()
}

// TestResumeTimer: the time that a provider has to connect goes on, too.
func TestResumeTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.connect(b.work)
		time.Sleep(4 * time.Minute)
		again := b.next()
		time.Sleep(59 * time.Second)
		synctest.Wait()
		again.state(driver.Connecting, "")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		again.state(driver.Failed, driver.ReasonTimeout)
		again.clean()
		b.end()
	})
}

// TestResumeChannel: a channel that ended meanwhile is missed.
func TestResumeChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		b.setParameters(s)
		theirs, _, err := b.OpenChannel(provider, s, driver.FormatOffload)
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		again := b.next()
		if again.Tunnel().Format() != driver.FormatOffload {
			t.Error("the channel has another format")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		again.state(driver.Configured, "")

		again.Tunnel().LoseChannel()
		third := again.next()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		third.state(driver.Failed, driver.ReasonChannelClosed)
		third.clean()
		again.end()
		b.end()
	})
}

// TestResumeEnds: what cannot go on is swept, and everybody knows why.
func TestResumeEnds(t *testing.T) {
	for _, tt := range []struct {
		name     string
		gone     string
		prepare  func(b *bench, s driver.SessionID)
		want     driver.State
		reason   string
		observed []string
	}{
		{
			name: "provider gone", gone: provider.Conn, want: driver.Failed, reason: driver.ReasonProviderGone, observed: []string{"sweep"},
		},
		{
			name: "no tunnel", prepare: func(b *bench, _ driver.SessionID) { b.Fail("adopt", true) },
			want: driver.Failed, reason: "internal error: adopt: forced failure",
			observed: []string{`:1.1 gets disconnected "internal error: adopt: forced failure" of session 1`, "sweep"},
		},
		{
			name: "killed while it ended", prepare: func(b *bench, s driver.SessionID) {
				release := b.Hold("undo")
				b.t.Cleanup(release)
				go b.EndSession(ui, s)
				synctest.Wait()
			},
			want: driver.Idle, observed: []string{"sweep"},
		},
		{
			name: "ended", prepare: func(b *bench, s driver.SessionID) {
				if err := b.Notify(provider, s, false); err != nil {
					b.t.Error(err)
				}
			},
			want: driver.Failed, reason: driver.ReasonProviderFailure, observed: []string{"sweep"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				s := b.connect(b.work)
				b.setParameters(s)
				if tt.prepare != nil {
					tt.prepare(b, s)
				}
				again := b.next(tt.gone)
				again.observed(tt.observed...)
				again.state(tt.want, tt.reason)
				if c := again.Applied(); c.Link.Index != 0 || len(again.Sessions(root)) != 0 {
					t.Errorf("left: %+v, %v", c, again.Sessions(root))
				}
				// And the next process does not find it again.
				third := again.next(tt.gone)
				third.observed("sweep")
				third.state(tt.want, tt.reason)
			})
		})
	}
}

// TestResumeNetworkLater: what cannot be done of the network now is no end.
func TestResumeNetworkLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		b.setParameters(s)
		b.Fail("resume", true)
		again := b.next()
		again.state(driver.Configured, "")
		again.Shutdown()
		b.end()
	})
}

// TestLeave: whoever leaves undoes nothing, but for what is being undone.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		b.setParameters(s)
		b.Log()
		b.Leave()
		b.observed()
		if _, err := b.Connect(t.Context(), ui, b.create(provider, "Other"), driver.Connect{}); err == nil {
			t.Error("a session begins")
		}
		again := b.next()
		again.state(driver.Configured, "")
		again.Shutdown()
		again.clean()
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		release := b.Hold("undo")
		go b.EndSession(ui, s)
		synctest.Wait()
		left := make(chan struct{})
		go func() {
			b.Leave()
			close(left)
		}()
		synctest.Wait()
		select {
		case <-left:
			t.Error("it did not wait")
		default:
		}
		release()
		<-left
		b.clean()
	})
}

// TestKeptBeforeTold: nobody learns of a change that a kill would take back.
func TestKeptBeforeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var told []driver.State
		b.OnObserve(func(n driver.Notice) {
			var state driver.State
			switch n := n.(type) {
			case driver.SessionAdded:
				state = n.Session.State
			case driver.SessionChanged:
				state = n.After.State
			default:
				return
			}
			told = append(told, state)
			kept := strings.Contains(string(b.Kept()), fmt.Sprintf("%q:%q", "State", state))
			if goesOn := state != driver.Disconnecting; kept != goesOn || strings.Contains(string(b.Kept()), `"Session":`) != goesOn {
				t.Errorf("%s is told, and kept is\n%s", state, b.Kept())
			}
		})
		s := b.connect(b.work)
		b.setParameters(s)
		b.notify(s)
		if err := b.Disconnect(ui, b.work); err != nil {
			t.Error(err)
		}
		if want := []driver.State{driver.Connecting, driver.Configured, driver.Connected, driver.Disconnecting}; !cmp.Equal(told, want) {
			t.Errorf("told %v", told)
		}
		b.OnObserve(nil)
		b.clean()
	})
}

func FuzzResume(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"Version":1,"Session":{"ID":1,"Config":"x","Conn":":1.1","Link":{"Name":"vpn0","Index":100,"Slot":0},"State":"connected","Parameters":{"Addresses":["10.8.0.2/24"],"MTU":1500}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			s := b.connect(b.work)
			b.setParameters(s)
			again, err := driver.NewManager(b.Options())
			if err != nil {
				t.Fatal(err)
			}
			// The config's own id, so that something can go on.
			text = bytes.ReplaceAll(text, []byte(`"x"`), []byte(`"`+string(b.work)+`"`))
			if err := again.Resume(t.Context(), text, func(string) bool { return true }); err != nil {
				t.Error(err)
			}
			// Whatever it is, it can be looked at, kept and ended.
			again.Configs(root)
			kept := b.Kept()
			again.Shutdown()
			third, err := driver.NewManager(b.Options())
			if err != nil {
				t.Fatal(err)
			}
			if err := third.Resume(t.Context(), kept, func(string) bool { return true }); err != nil {
				t.Error(err)
			}
			third.Shutdown()
			b.end()
		})
	})
}
