package driver_test

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/driver"
	"github.com/vpnprovider/vpnproviderd/driver/drivertest"
)

const app = "com.example.Demo"

var (
	provider = driver.Caller{UID: 1000, Conn: ":1.1"}
	ui       = driver.Caller{UID: 1000, Conn: ":1.2"}
	stranger = driver.Caller{UID: 1001, Conn: ":1.3"}
	root     = driver.Caller{UID: 0, Conn: ":1.4"}
)

// bench is a manager with a registered provider and a config Work.
type bench struct {
	*driver.Manager
	*drivertest.World
	t    *testing.T
	work driver.ConfigID
}

func newBench(t *testing.T) *bench {
	t.Helper()
	w := drivertest.New()
	m, err := driver.NewManager(w.Options())
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Manager: m, World: w, t: t}
	if _, err := m.RegisterProvider(provider, app, driver.ProviderOptions{}, false); err != nil {
		t.Fatal(err)
	}
	b.work = b.create(provider, "Work")
	w.Log()
	return b
}

// Disconnect, EndSession, ForgetProvider and AskForConfig are the manager's, of
// callers who are not asked about, on what is their user's.

func (b *bench) Disconnect(by driver.Caller, id driver.ConfigID) error {
	return b.Manager.Disconnect(b.t.Context(), by, id, nil)
}

func (b *bench) EndSession(by driver.Caller, id driver.SessionID) error {
	return b.Manager.EndSession(b.t.Context(), by, id, nil)
}

func (b *bench) ForgetProvider(by driver.Caller, app string) error {
	return b.Manager.ForgetProvider(by, by.UID, app)
}

func (b *bench) AskForConfig(ctx context.Context, by driver.Caller, app, event string, waiting func()) error {
	return b.Manager.AskForConfig(ctx, by, by.UID, app, event, waiting)
}

func (b *bench) create(by driver.Caller, name string) driver.ConfigID {
	b.t.Helper()
	id, err := b.CreateConfig(by, driver.NewConfig{App: app, Name: name, Owner: by.UID})
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

func (b *bench) connect(id driver.ConfigID) driver.SessionID {
	b.t.Helper()
	s, err := b.Connect(b.t.Context(), ui, id, driver.Connect{})
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

var dictionary = map[string]any{"address": "10.8.0.2/24", "inclusionList": []string{"10.0.0.0/8"}}

func (b *bench) setParameters(s driver.SessionID) {
	b.t.Helper()
	if _, err := b.SetParameters(b.t.Context(), provider, s, dictionary); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) notify(s driver.SessionID) {
	b.t.Helper()
	if err := b.Notify(provider, s, true); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) state(want driver.State, reason string) {
	b.t.Helper()
	c, err := b.Config(ui, b.work)
	if err != nil || c.State != want || c.FailureReason != reason {
		b.t.Errorf("state %s %q (%v), want %s %q", c.State, c.FailureReason, err, want, reason)
	}
}

// observed compares with everything observed since the last call.
func (b *bench) observed(want ...string) {
	b.t.Helper()
	if diff := cmp.Diff(want, b.Log()); diff != "" {
		b.t.Errorf("observed (-want +got):\n%s", diff)
	}
}

func kind(t *testing.T, err error, want driver.Kind) {
	t.Helper()
	if err == nil || driver.KindOf(err) != want {
		t.Errorf("error %v of kind %d, want %d", err, driver.KindOf(err), want)
	}
}

// clean checks that nothing is left of any session.
func (b *bench) clean() {
	b.t.Helper()
	synctest.Wait()
	if n := b.OpenTunnels(); n != 0 {
		b.t.Errorf("%d tunnels are open", n)
	}
	if c := b.Applied(); c.Link.Index != 0 {
		b.t.Errorf("the network is %+v", c)
	}
	if s := b.Sessions(root); len(s) != 0 {
		b.t.Errorf("sessions %v", s)
	}
}

func TestLifeOfASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		b.observed("added session 1", `config Work: connecting session 1 ""`, `:1.1 gets connected "" of session 1`)
		kind(t, b.SendPacket(provider, s, []byte{1}), driver.KindWrongState)
		b.setParameters(s)
		b.observed("apply", "session 1: configured", `config Work: configured session 1 ""`)
		if err := b.SendPacket(provider, s, []byte{0x45}); err != nil {
			t.Error(err)
		}
		b.notify(s)
		b.observed("sent 45", "session 1: connected", `config Work: connected session 1 ""`)
		b.setParameters(s) // real clients do not notify again
		b.observed("apply", "session 1: connected", `config Work: connected session 1 ""`)
		if again := b.connect(b.work); again != s {
			t.Errorf("a second Connect gave session %d", again)
		}
		c, _ := b.Config(ui, b.work)
		if c.LastConnected == 0 {
			t.Error("LastConnected is 0")
		}
		if err := b.Disconnect(ui, b.work); err != nil {
			t.Error(err)
		}
		b.observed("session 1: disconnecting", `config Work: disconnecting session 1 ""`, `:1.1 gets disconnected "" of session 1`,
			"undo", `config Work: idle session 0 ""`, "gone session 1")
		if err := b.Disconnect(ui, b.work); err != nil {
			t.Errorf("a second Disconnect: %v", err)
		}
		b.observed()
		b.clean()
	})
}

// Every way in which a session ends: what the provider is told, and what the
// config says afterwards.
func TestEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		end    func(*bench, driver.SessionID)
		state  driver.State
		reason string
		mute   bool // the provider cannot be told
	}{
		"session disconnect": {func(b *bench, s driver.SessionID) { b.EndSession(ui, s) }, driver.Idle, "", false},
		"by the provider":    {func(b *bench, s driver.SessionID) { b.EndSession(provider, s) }, driver.Idle, "", false},
		"by root":            {func(b *bench, _ driver.SessionID) { b.Disconnect(root, b.work) }, driver.Idle, "", false},
		"notify failure":     {func(b *bench, s driver.SessionID) { b.Notify(provider, s, false) }, driver.Failed, "provider failure", false},
		"provider left":      {func(b *bench, _ driver.SessionID) { b.ConnectionGone(provider.Conn) }, driver.Failed, "provider gone", true},
		"unregistered":       {func(b *bench, _ driver.SessionID) { b.UnregisterProvider(provider, "") }, driver.Failed, "provider gone", false},
		"taken over": {func(b *bench, _ driver.SessionID) {
			if _, err := b.RegisterProvider(ui, app, driver.ProviderOptions{}, true); err != nil {
				b.t.Error(err)
			}
		}, driver.Failed, "provider gone", false},
		"channel closed": {func(b *bench, _ driver.SessionID) {
			b.Tunnel().Events.ChannelClosed(io.EOF)
			time.Sleep(5*time.Second - 1)
			if len(b.Sessions(ui)) == 0 {
				b.t.Error("the session did not wait for another channel")
			}
			time.Sleep(time.Nanosecond)
		}, driver.Failed, "channel closed", false},
		"tun died": {func(b *bench, _ driver.SessionID) { b.Tunnel().Events.Failed(drivertest.ErrForced) }, driver.Failed, "internal error: forced failure", false},
		"shutdown": {func(b *bench, _ driver.SessionID) { b.Shutdown() }, driver.Idle, "shutdown", false},
		"replaced": {func(b *bench, _ driver.SessionID) {
			other := b.connect(b.create(provider, "Other"))
			b.EndSession(ui, other)
		}, driver.Idle, "replaced", false},
	} {
		for _, depth := range []string{"connecting", "configured", "connected"} {
			t.Run(name+" in "+depth, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := newBench(t)
					s := b.connect(b.work)
					if depth != "connecting" {
						b.setParameters(s)
					}
					if depth == "connected" {
						b.notify(s)
					}
					b.Log()
					tt.end(b, s)
					synctest.Wait()
					b.state(tt.state, tt.reason)
					log := b.Log()
					told := slices.IndexFunc(log, func(l string) bool { return strings.HasPrefix(l, ":1.1 gets disconnected") })
					undone := slices.Index(log, "undo")
					if (told < 0) != tt.mute || undone < told {
						t.Errorf("told at %d, undone at %d:\n%s", told, undone, strings.Join(log, "\n"))
					}
					kind(t, b.Notify(provider, s, true), driver.KindNotFound)
					b.clean()
				})
			})
		}
	}
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.connect(b.work)
		b.Log()
		time.Sleep(5*time.Minute - 1)
		b.observed()
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		b.observed("session 1: disconnecting", `config Work: disconnecting session 1 ""`,
			`:1.1 gets error "connection timed out" of session 1`, `:1.1 gets disconnected "connection timed out" of session 1`,
			"undo", `config Work: failed session 0 "connection timed out"`, "gone session 1")
		b.clean()
		s := b.connect(b.work)
		b.setParameters(s)
		time.Sleep(time.Hour)
		b.state(driver.Configured, "")
		b.Shutdown()
	})
}

// A call with errors changes nothing, and the timer goes on.
func TestBadParameters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		b.Log()
		_, err := b.SetParameters(t.Context(), provider, s, map[string]any{"address": "x", "mtu": "1", "dnsServers": []string{"?"}, "nonsense": true})
		kind(t, err, driver.KindInvalidParameter)
		for _, name := range []string{"address", "mtu", "dnsServers", "nonsense"} {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("%q does not name %s", err, name)
			}
		}
		b.observed()
		b.Fail("apply", true)
		_, err = b.SetParameters(t.Context(), provider, s, dictionary)
		kind(t, err, driver.KindFailed)
		b.Fail("apply", false)
		b.observed()
		b.state(driver.Connecting, "")
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		b.state(driver.Failed, "connection timed out")
		b.clean()
	})
}

func TestNotifyBeforeParameters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		b.notify(s)
		b.state(driver.Connecting, "")
		b.setParameters(s)
		b.state(driver.Connected, "")
		b.Shutdown()
	})
}

func TestNoTUN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.Fail("open", true)
		_, err := b.Connect(t.Context(), ui, b.work, driver.Connect{})
		kind(t, err, driver.KindFailed)
		b.observed(`config Work: failed session 0 "internal error: open: forced failure"`)
		b.Fail("open", false)
		b.connect(b.work)
		b.state(driver.Connecting, "")
		b.Shutdown()
	})
}

func TestSecondChannelInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		b.setParameters(s)
		for range 3 {
			ch, mtu, err := b.OpenChannel(provider, s, driver.FormatPacket)
			if err != nil || mtu != 1500 {
				t.Fatal(mtu, err)
			}
			ch.Close()
			b.Tunnel().EndChannel(io.EOF)
			time.Sleep(4 * time.Second)
		}
		b.state(driver.Configured, "")
		time.Sleep(time.Second)
		synctest.Wait()
		b.state(driver.Failed, "channel closed")
	})
}

// With packet signals no channel is needed.
func TestPacketSignals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		if _, err := b.RegisterProvider(provider, app, driver.ProviderOptions{PacketSignals: true}, false); err != nil {
			t.Fatal(err)
		}
		b.setParameters(b.connect(b.work))
		b.Log()
		b.Tunnel().Events.Packet([]byte{0x45})
		b.observed("packet 45 of session 1 to :1.1")
		b.Tunnel().EndChannel(io.EOF)
		time.Sleep(time.Hour)
		b.state(driver.Configured, "")
		b.Shutdown()
	})
}

// A session that ends takes the place of parameters that are being applied.
func TestEndWhileApplying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		release := b.Hold("apply")
		defer release()
		failed := make(chan error)
		go func() {
			_, err := b.SetParameters(t.Context(), provider, s, dictionary)
			failed <- err
		}()
		synctest.Wait()
		go b.Disconnect(ui, b.work)
		kind(t, <-failed, driver.KindWrongState)
		b.clean()
		b.state(driver.Idle, "")
	})
}

func TestConnectWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		release := b.Hold("undo")
		go b.Disconnect(ui, b.work)
		synctest.Wait()
		b.state(driver.Disconnecting, "")
		kind(t, b.Notify(provider, s, true), driver.KindWrongState)
		waited := false
		second := make(chan driver.SessionID)
		go func() {
			id, err := b.Connect(t.Context(), ui, b.work, driver.Connect{Waiting: func() { waited = true }})
			if err != nil {
				t.Error(err)
			}
			second <- id
		}()
		synctest.Wait()
		release()
		if id := <-second; id != 2 || !waited {
			t.Errorf("session %d, waited %v", id, waited)
		}
		b.state(driver.Connecting, "")
		b.Shutdown()
		b.clean()
	})
}

// Disconnect, removal and shutdown cancel a Connect that waits for a person.
func TestConnectCancelled(t *testing.T) {
	for name, cancel := range map[string]func(*bench){
		"disconnect": func(b *bench) { b.Disconnect(ui, b.work) },
		"remove":     func(b *bench) { b.RemoveConfig(ui, b.work) },
		"destroy":    func(b *bench) { b.DestroyConfig(provider, b.work) },
		"shutdown":   func(b *bench) { b.Shutdown() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				failed := make(chan error)
				go func() {
					_, err := b.Connect(t.Context(), ui, b.work, driver.Connect{
						Authorize: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
					})
					failed <- err
				}()
				synctest.Wait()
				cancel(b)
				if err := <-failed; err == nil || err.Error() != "cancelled" {
					t.Errorf("error %v", err)
				}
				b.clean()
			})
		})
	}
}

func TestOneSessionAHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		if _, err := b.RegisterProvider(stranger, app, driver.ProviderOptions{}, false); err != nil {
			t.Fatal(err)
		}
		theirs := b.create(stranger, "Theirs")
		b.connect(b.work)
		_, err := b.Connect(t.Context(), stranger, theirs, driver.Connect{})
		kind(t, err, driver.KindBusy)
		b.state(driver.Connecting, "")
		_, err = b.Connect(t.Context(), stranger, theirs, driver.Connect{Override: func(context.Context) error { return nil }})
		if err != nil {
			t.Error(err)
		}
		b.state(driver.Idle, "replaced")
		if _, err := b.Connect(t.Context(), root, b.work, driver.Connect{}); err != nil {
			t.Error(err)
		}
		b.state(driver.Connecting, "")
		b.Shutdown()
		b.clean()
	})
}

// Many at once: at most one session, none lost, all undone.
func TestConcurrentConnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		ids := []driver.ConfigID{b.work, b.create(provider, "A"), b.create(provider, "B")}
		done := make(chan struct{})
		for i := range 60 {
			go func() {
				defer func() { done <- struct{}{} }()
				id := ids[i%len(ids)]
				switch i % 4 {
				case 0:
					b.Disconnect(ui, id)
				default:
					s, err := b.Connect(t.Context(), ui, id, driver.Connect{})
					if err == nil {
						b.SetParameters(t.Context(), provider, s, dictionary)
					}
				}
			}()
		}
		for range 60 {
			<-done
		}
		b.Shutdown()
		b.clean()
		opened := 0
		for _, line := range b.Log() {
			switch {
			case strings.HasPrefix(line, "added session"):
				if opened++; opened > 1 {
					t.Error("two sessions at once")
				}
			case strings.HasPrefix(line, "gone session"):
				opened--
			}
		}
	})
}

func TestOwnership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		s := b.connect(b.work)
		b.setParameters(s)
		for _, tt := range []struct {
			by   driver.Caller
			want driver.Kind
		}{{ui, driver.KindNotOwner}, {root, driver.KindNotOwner}, {stranger, driver.KindNotFound}} {
			_, err := b.SetParameters(t.Context(), tt.by, s, dictionary)
			kind(t, err, tt.want)
			kind(t, b.Notify(tt.by, s, true), tt.want)
			kind(t, b.Acknowledge(tt.by, s, "suspend"), tt.want)
			kind(t, b.SendPacket(tt.by, s, []byte{1}), tt.want)
			_, _, err = b.OpenChannel(tt.by, s, driver.FormatOffload)
			kind(t, err, tt.want)
			kind(t, b.ProtectSocket(tt.by, s, os.Stdin), tt.want)
			r, w, _ := os.Pipe()
			_, err = b.AttachChannel(tt.by, s, w, driver.FormatPacket)
			kind(t, err, tt.want)
			if _, err := w.Stat(); !errors.Is(err, os.ErrClosed) {
				t.Error("AttachChannel left a refused descriptor open")
			}
			r.Close()
		}
		kind(t, b.EndSession(stranger, s), driver.KindNotFound)
		kind(t, b.Disconnect(stranger, b.work), driver.KindNotFound)
		kind(t, b.RemoveConfig(stranger, b.work), driver.KindNotFound)
		kind(t, b.UpdateConfig(t.Context(), stranger, b.work, driver.ConfigChanges{}), driver.KindNotFound)
		if len(b.Configs(stranger)) != 0 || len(b.Sessions(stranger)) != 0 || len(b.ListProviders(stranger)) != 0 {
			t.Error("a stranger sees something")
		}
		if len(b.Configs(root)) != 1 || len(b.Sessions(root)) != 1 {
			t.Error("root does not see all")
		}
		b.Shutdown()
	})
}

func TestProviderNotRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.ConnectionGone(provider.Conn)
		_, err := b.Connect(t.Context(), ui, b.work, driver.Connect{})
		kind(t, err, driver.KindProviderNotRunning)
		kind(t, b.AskToConfigure(t.Context(), ui, b.work, "showConfigureDialog", nil), driver.KindProviderNotRunning)
		kind(t, b.AskForConfig(t.Context(), ui, app, "showAddDialog", nil), driver.KindProviderNotRunning)
		b.state(driver.Idle, "")
	})
}
