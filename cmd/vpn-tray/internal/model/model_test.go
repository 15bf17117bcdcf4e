package model_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// story tells a model what happens, and notes what the user is told.
type story struct {
	*model.Model
	now  time.Time
	told []string
}

// begin is a tray that knows the daemon and these configs.
func begin(configs ...client.ConfigProperties) *story {
	s := &story{Model: model.New(), now: time.Unix(1e9, 0)}
	s.Joined()
	for _, c := range configs {
		s.apply(client.Added, c)
	}
	s.Apply(client.Change{Kind: client.Synced}, s.now)
	return s
}

func (s *story) apply(kind client.ChangeKind, c client.ConfigProperties) {
	s.Apply(client.Change{Kind: kind, Config: &c}, s.now)
	s.pass(0)
}

func (s *story) pass(d time.Duration) {
	s.now = s.now.Add(d)
	for _, n := range s.Due(s.now) {
		text := strings.TrimSpace(n.Summary + " | " + n.Body)
		if n.Kind == model.Withdraw {
			text = "withdrawn"
		}
		s.told = append(s.told, fmt.Sprintf("%s: %s", n.Key, text))
	}
}

func (s *story) stop()  { s.Apply(client.Change{Kind: client.Stopped}, s.now) }
func (s *story) start() { s.Apply(client.Change{Kind: client.Synced}, s.now) }

func (s *story) expectTold(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, s.told); diff != "" {
		t.Errorf("the user was told (-want +got):\n%s", diff)
	}
	s.told = nil
}

func work(state client.State) client.ConfigProperties {
	return client.ConfigProperties{Path: "/work", App: "com.example.Demo", Name: "Work", State: state}
}

func failed(reason string) client.ConfigProperties {
	c := work(client.StateFailed)
	c.FailureReason = reason
	return c
}

func locked(c client.ConfigProperties) client.ConfigProperties {
	c.Lockdown = true
	return c
}

// What each state shows.
func TestStates(t *testing.T) {
	for _, test := range []struct {
		config client.ConfigProperties
		icon   model.Icon
		status string
		label  string
		verb   model.Verb
	}{
		{work(client.StateIdle), model.Disconnected, "Not connected", "Work", model.Connect},
		{work(client.StateConnecting), model.Connecting, "Connecting to Work …", "Work: connecting …", model.Disconnect},
		{work(client.StateConfigured), model.Connecting, "Connecting to Work …", "Work: connecting …", model.Disconnect},
		{work(client.StateConnected), model.Connected, "Connected to Work", "Work: connected", model.Disconnect},
		{work(client.StateReconnecting), model.Reconnecting, "Reconnecting to Work …", "Work: reconnecting …", model.Disconnect},
		{work(client.StateDisconnecting), model.Connecting, "Disconnecting from Work …", "Work: disconnecting …", model.Disconnect},
		{failed("connection timed out"), model.Failed, "Not connected", "Work: failed, it took too long", model.Connect},
		{failed("provider gone"), model.Failed, "Not connected", "Work: failed, its app has ended", model.Connect},
		{failed("provider failure"), model.Failed, "Not connected", "Work: failed, its app could not connect", model.Connect},
		{failed("channel closed"), model.Failed, "Not connected", "Work: failed, its app takes no more packets", model.Connect},
		{failed("underlying network disconnected"), model.Failed, "Not connected", "Work: failed, the network is gone", model.Connect},
		{failed("internal error: no TUN"), model.Failed, "Not connected", "Work: failed, internal error: no TUN", model.Connect},
		{failed(""), model.Failed, "Not connected", "Work: failed", model.Connect},
		{locked(work(client.StateIdle)), model.Lockdown, "Lockdown: nothing leaves without a VPN", "Work: lockdown", model.Connect},
		{locked(failed("")), model.Lockdown, "Lockdown: nothing leaves without a VPN", "Work: failed, lockdown", model.Connect},
		{locked(work(client.StateConnected)), model.Connected, "Connected to Work", "Work: connected, lockdown", model.Disconnect},
		{locked(work(client.StateConnecting)), model.Connecting, "Connecting to Work …", "Work: connecting …, lockdown", model.Disconnect},
		{work("a later state"), model.Disconnected, "Not connected", "Work", model.Disconnect},
	} {
		for when, s := range map[string]*story{"at first": begin(test.config), "later": begin()} {
			if when == "later" {
				s.apply(client.Added, test.config)
			}
			want := model.View{
				Icon: test.icon, Status: test.status, Unlock: test.config.Lockdown,
				Configs:  []model.Item{{Label: test.label, Checked: test.verb == model.Disconnect, Enabled: true, Action: model.Action{Verb: test.verb, Target: "/work", Name: "Work"}}},
				Settings: []model.Item{{Label: "Work", Enabled: true, Action: model.Action{Verb: model.Configure, Target: "/work", Name: "Work"}}},
			}
			if diff := cmp.Diff(want, s.View()); diff != "" {
				t.Errorf("%s %+v (-want +got):\n%s", when, test.config, diff)
			}
		}
	}
}

func TestBeginning(t *testing.T) {
	m := model.New()
	if v := m.View(); v.Icon != model.Disconnected || v.Status != "Looking for the VPN service …" || v.Retry {
		t.Errorf("at first %+v", v)
	}
	s := &story{Model: m, now: time.Unix(1e9, 0)}
	s.Lost(s.now)
	if v := m.View(); v.Status != "The VPN service is not running" || !v.Retry || v.Icon != model.Disconnected {
		t.Errorf("without the daemon %+v", v)
	}
	s.start()
	if v := m.View(); v.Status != "There are no VPNs" || v.Retry || !m.Running() {
		t.Errorf("with the daemon %+v", v)
	}
	s.pass(time.Hour)
	s.expectTold(t, "service: withdrawn")
}

// A failure is told once, and not when the tray starts.
func TestFailure(t *testing.T) {
	s := begin(failed("provider gone"))
	s.expectTold(t)
	s.apply(client.Changed, work(client.StateConnecting))
	s.apply(client.Changed, failed("connection timed out"))
	s.apply(client.Changed, locked(failed("connection timed out"))) // no new state
	s.expectTold(t, "/work: Work is not connected | It took too long.")
	s.apply(client.Changed, work(client.StateConnecting))
	s.expectTold(t, "/work: withdrawn")
	s.apply(client.Changed, work(client.StateConfigured))
	s.apply(client.Changed, work(client.StateConnected))
	s.apply(client.Changed, work(client.StateDisconnecting))
	s.apply(client.Changed, work(client.StateIdle))
	s.pass(time.Hour)
	s.expectTold(t)

	// The icon is about what happened last.
	home := client.ConfigProperties{Path: "/home", App: "com.example.Demo", Name: "home", State: client.StateIdle}
	s.apply(client.Changed, failed(""))
	s.apply(client.Added, home)
	if icon := s.View().Icon; icon != model.Failed {
		t.Errorf("icon %d after a failure", icon)
	}
	home.State = client.StateConnecting
	s.apply(client.Changed, home)
	home.State = client.StateIdle
	s.apply(client.Changed, home)
	if v := s.View(); v.Icon != model.Disconnected || v.Configs[0].Label != "home" {
		t.Errorf("%+v after the user turned to another", v)
	}
	s.told = nil
	s.apply(client.Removed, work(""))
	s.expectTold(t, "/work: withdrawn")
	if n := len(s.View().Configs); n != 1 {
		t.Errorf("%d configs are left", n)
	}
}

// Reconnecting is told only when it takes long, and then also its end.
func TestReconnecting(t *testing.T) {
	const slow = "/work: Work is reconnecting | What goes through the VPN is held back until it is connected again."
	s := begin(work(client.StateConnected))
	s.apply(client.Changed, work(client.StateReconnecting))
	if next := s.Next(); next.Sub(s.now) != 5*time.Second {
		t.Errorf("next %v", next)
	}
	s.pass(4 * time.Second)
	s.apply(client.Changed, work(client.StateConnected))
	s.pass(time.Hour)
	s.expectTold(t)
	if next := s.Next(); !next.IsZero() {
		t.Errorf("next %v, with nothing to come", next)
	}

	s.apply(client.Changed, work(client.StateReconnecting))
	s.pass(5 * time.Second)
	s.pass(time.Hour)
	s.expectTold(t, slow)
	s.apply(client.Changed, work(client.StateConnected))
	s.expectTold(t, "/work: Work is connected again |")

	s.apply(client.Changed, work(client.StateReconnecting))
	s.pass(time.Minute)
	s.apply(client.Changed, failed("connection timed out"))
	s.expectTold(t, slow, "/work: Work is not connected | It took too long.")

	s.apply(client.Changed, work(client.StateReconnecting))
	s.pass(time.Minute)
	s.apply(client.Changed, work(client.StateDisconnecting))
	s.apply(client.Changed, work(client.StateIdle))
	s.expectTold(t, "/work: withdrawn", slow, "/work: withdrawn")
}

// A daemon that is upgraded is no news; one that stays away is.
func TestDaemonAway(t *testing.T) {
	s := begin(work(client.StateConnected))
	s.stop()
	s.pass(4 * time.Second)
	if v := s.View(); v.Icon != model.Connected {
		t.Errorf("in the first moment %+v", v)
	}
	s.start()
	s.pass(time.Hour)
	s.expectTold(t)

	s.stop()
	if next := s.Next(); next.Sub(s.now) != 5*time.Second {
		t.Errorf("next %v", next)
	}
	s.pass(5 * time.Second)
	s.pass(time.Hour)
	s.expectTold(t, "service: The VPN service has stopped | VPNs are not connected.")
	if v := s.View(); v.Icon != model.Failed || !v.Retry || v.Configs[0].Enabled || v.Configs[0].Checked || v.Configs[0].Label != "Work" {
		t.Errorf("without the daemon %+v", v)
	}
	s.apply(client.Changed, failed("internal error: the daemon was restarted"))
	s.start()
	s.pass(0)
	s.expectTold(t, "/work: Work is not connected | Internal error: the daemon was restarted.", "service: withdrawn")
	if v := s.View(); v.Icon != model.Failed || v.Retry || !v.Configs[0].Enabled {
		t.Errorf("with the daemon again %+v", v)
	}

	s = begin(work(client.StateIdle)) // nothing is lost
	s.stop()
	s.pass(time.Hour)
	s.expectTold(t)
	if v := s.View(); v.Icon != model.Disconnected || v.Status != "The VPN service is not running" {
		t.Errorf("without the daemon %+v", v)
	}
}

// After the loss of the bus everything is told again.
func TestJoinedAgain(t *testing.T) {
	home := client.ConfigProperties{Path: "/home", Name: "Home", State: client.StateIdle}
	s := begin(work(client.StateConnected), home)
	s.Lost(s.now)
	s.pass(time.Second)
	s.Joined()
	s.apply(client.Added, work(client.StateConnected))
	s.start()
	if v := s.View(); len(v.Configs) != 1 || v.Configs[0].Label != "Work: connected" {
		t.Errorf("%+v", v)
	}
	s.expectTold(t)
}

// What the user asked for is seen at once, also while the app is started.
func TestAsked(t *testing.T) {
	s := begin(work(client.StateIdle))
	connect := s.View().Configs[0].Action
	s.Asked(connect)
	if v := s.View(); v.Icon != model.Connecting || v.Configs[0].Label != "Work: connecting …" || v.Configs[0].Action.Verb != model.Disconnect {
		t.Errorf("asked %+v", v)
	}
	s.Answered(connect, fmt.Errorf("cannot connect: %w", &client.Error{Name: "x", Message: "com.example.Demo is not running"}))
	s.pass(0)
	s.expectTold(t, "/work: Cannot connect Work | com.example.Demo is not running.")
	if v := s.View(); v.Configs[0].Action.Verb != model.Connect {
		t.Errorf("refused %+v", v)
	}

	s.Asked(connect)
	disconnect := s.View().Configs[0].Action
	s.Asked(disconnect)
	s.Answered(connect, errors.New("cancelled"))
	s.Answered(disconnect, nil)
	s.pass(0)
	s.expectTold(t)

	s.Asked(connect)
	s.Answered(connect, nil)
	s.apply(client.Changed, work(client.StateConnecting))
	s.apply(client.Changed, work(client.StateIdle))
	if v := s.View(); v.Configs[0].Label != "Work" {
		t.Errorf("afterwards %+v", v)
	}
	s.told = nil
	for _, a := range []model.Action{
		{Verb: model.Disconnect, Target: "/work", Name: "Work"},
		{Verb: model.Add, Target: "com.example.Demo", Name: "Demo"},
		{Verb: model.Configure, Target: "/gone", Name: "Gone"},
		{Verb: model.Unlock},
		{Verb: model.Retry},
	} {
		s.Asked(a)
		s.Answered(a, errors.New("no"))
	}
	s.pass(0)
	s.expectTold(t, "/work: Cannot disconnect Work | No.", "com.example.Demo: Cannot show the settings of Demo | No.",
		"/gone: Cannot show the settings of Gone | No.", "service: Cannot end the lockdown | No.", "service: The VPN service could not do that | No.")
}

func TestProvidersAndHealth(t *testing.T) {
	other := work(client.StateIdle)
	other.Path, other.App = "/other", "org.other.App"
	s := begin(work(client.StateConnected), other)
	s.SetProviders([]client.ProviderInfo{{App: "org.other.App"}, {App: "com.example.Demo", DisplayName: "Demo"}})
	s.SetHealth([]client.Health{{Code: "lockdown", Severity: "info", Text: "a lockdown"}, {Code: "overridden", Severity: "warning", Text: "another rule\nis first"}})
	v := s.View()
	want := []model.Item{
		{Label: "Demo", Enabled: true, Action: model.Action{Verb: model.Add, Target: "com.example.Demo", Name: "Demo"}},
		{Label: "org.other.App", Enabled: true, Action: model.Action{Verb: model.Add, Target: "org.other.App", Name: "org.other.App"}},
	}
	if diff := cmp.Diff(want, v.Add); diff != "" {
		t.Error(diff)
	}
	if !v.Unlock || !slices.Equal(v.Problems, []string{"another rule�is first"}) {
		t.Errorf("%+v", v)
	}
	if v.Configs[0].Label != "Work (Demo): connected" || v.Configs[1].Label != "Work (org.other.App)" || v.Status != "Connected to Work (Demo)" {
		t.Errorf("%+v", v)
	}
}

// What an app writes cannot make more of the menu than a line.
func TestHostileNames(t *testing.T) {
	c := work(client.StateIdle)
	c.Name = "a\nb\u202ec" + strings.Repeat("x", 5000)
	v := begin(c).View()
	if got := v.Configs[0].Label; !strings.HasPrefix(got, "a�b�cx") || len([]rune(got)) > 100 {
		t.Errorf("label %q", got)
	}
}

func BenchmarkView(b *testing.B) {
	var configs []client.ConfigProperties
	for i := range 1000 {
		configs = append(configs, client.ConfigProperties{Path: fmt.Sprint("/", i), Name: fmt.Sprint("Name ", i), State: client.StateIdle})
	}
	s := begin(configs...)
	for b.Loop() {
		s.View()
	}
}
