package dbus_test

import (
	"slices"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// own is what polkit allows a user at the screen.
func own() []string { return []string{"org.vpnprovider1.manage-own", "org.vpnprovider1.connect"} }

// answerNext answers the one question that is open.
func (a *authority) answerNext(t *testing.T, what string) {
	t.Helper()
	for _, id := range a.questions(t, 1) {
		a.say(id, what)
	}
}

func (a *authority) questionsAsked() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.asked)
}

// The first connect of an app asks its user, and no other one does: until the
// app is forgotten.
func TestConsent(t *testing.T) {
	a := &authority{yes: own()}
	b := newPolkitBench(t, a)
	p, config := b.provider()
	text := p.refused(p.config(config, "Connect", dict{}), wire.ErrNotAuthorized)
	if !strings.Contains(text, app) || !strings.Contains(text, "trust-provider") {
		t.Errorf("the text names neither app nor action: %q", text)
	}
	for what, says := range map[string]string{"no": "does not allow", "dismiss": "dismissed"} {
		done := p.connectInteractively(config)
		a.answerNext(t, what)
		if text := p.refused(<-done, wire.ErrNotAuthorized); !strings.Contains(text, says) {
			t.Errorf("%s: %q", what, text)
		}
	}
	// root needs none, and gives none.
	root := b.client(0)
	root.must(root.config(config, "Connect", dict{}))
	root.must(root.config(config, "Disconnect", dict{}))

	done := p.connectInteractively(config)
	a.answerNext(t, "yes")
	p.must(<-done)
	p.must(p.config(config, "Disconnect", dict{}))
	other := b.client(harness.Alice)
	other.must(other.config(config, "Connect", dict{})) // and nobody may be asked
	other.must(other.config(config, "Disconnect", dict{}))

	// It holds for that app of that user alone.
	p.must(p.manager("RegisterProvider", "com.example.Other", dict{}))
	var others godbus.ObjectPath
	p.must(p.manager("CreateConfig", "com.example.Other", "Work", dict{}), &others)
	p.refused(p.config(others, "Connect", dict{}), wire.ErrNotAuthorized)
	bob := b.client(harness.Bob)
	bob.must(bob.manager("RegisterProvider", app, dict{}))
	var bobs godbus.ObjectPath
	bob.must(bob.manager("CreateConfig", app, "Work", dict{}), &bobs)
	bob.refused(bob.config(bobs, "Connect", dict{}), wire.ErrNotAuthorized)

	p.must(p.manager("ForgetProvider", app, dict{}))
	p.must(p.manager("CreateConfig", app, "Work", dict{}), &config)
	p.refused(p.config(config, "Connect", dict{}), wire.ErrNotAuthorized)
	want := []string{"org.vpnprovider1.trust-provider " + app}
	if got := slices.Compact(a.questionsAsked()); !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
}

// What may not be connected is not asked about, and a yes that comes after the
// app was forgotten counts for nothing.
func TestConsentWithdrawn(t *testing.T) {
	a := &authority{yes: own(), no: nil}
	b := newPolkitBench(t, a)
	p, config := b.provider()
	a.decide([]string{"org.vpnprovider1.manage-own"}, []string{"org.vpnprovider1.connect"})
	p.refused(<-p.connectInteractively(config), wire.ErrNotAuthorized)
	a.decide(own(), nil)
	if asked := a.questionsAsked(); len(asked) != 0 {
		t.Errorf("asked %q", asked)
	}

	done := p.connectInteractively(config)
	a.questions(t, 1)
	p.must(p.manager("ForgetProvider", app, dict{}))
	p.refused(<-done, wire.ErrFailed)
	a.requireCancelled(t, 1)
	p.must(p.manager("CreateConfig", app, "Work", dict{}), &config)
	p.refused(p.config(config, "Connect", dict{}), wire.ErrNotAuthorized)

	// A consent that cannot be kept is none.
	b.Fail("consent", true)
	done = p.connectInteractively(config)
	a.answerNext(t, "yes")
	p.refused(<-done, wire.ErrFailed)
	b.Fail("consent", false)
	p.refused(p.config(config, "Connect", dict{}), wire.ErrNotAuthorized)
	if err := p.state(config, wire.StateIdle); err != nil {
		t.Error(err)
	}
}

// What was connected connects by itself, but not where the consent is gone:
// nobody is asked, and what polkit's rules allow is no consent.
func TestConsentAutoConnect(t *testing.T) {
	a := &authority{yes: append(own(), "org.vpnprovider1.trust-provider")}
	b := newPolkitBench(t, a)
	p := b.client(harness.Alice)
	p.must(p.manager("RegisterProvider", app, dict{}))
	var config, session godbus.ObjectPath
	p.must(p.manager("CreateConfig", app, "Work", dict{"autoConnect": godbus.MakeVariant(true)}), &config)
	root := b.client(0)
	root.must(root.config(config, "Connect", dict{}), &session) // which is no consent
	p.must(p.session(session, "SetParameters", dict{"address": godbus.MakeVariant("10.8.0.2/24")}))
	p.must(p.session(session, "NotifyConnectionStateChanged", "connected", dict{}))
	p.must(p.config(config, "Disconnect", dict{}))
	again := func() {
		p.must(p.manager("UnregisterProvider", app, dict{}))
		<-p.interactively(wire.RootPath, wire.ManagerInterface, "RegisterProvider", app, dict{})
	}
	again()
	harness.Eventually(t, harness.Timeout, "the refusal is in the log", func() error {
		return b.log.holds("has no consent")
	})
	if err := p.state(config, wire.StateIdle); err != nil {
		t.Error(err)
	}
	p.must(p.config(config, "Connect", dict{}), &session) // the rule consents
	p.must(p.config(config, "Disconnect", dict{}))
	again()
	harness.Eventually(t, harness.Timeout, "it connects by itself", func() error { return p.state(config, wire.StateConnecting) })
}

// A polkit that hangs holds up neither other calls of its caller nor the end of
// what the caller connected, and is a no after its time.
func TestPolkitHangs(t *testing.T) {
	a := &authority{yes: append(own(), "org.vpnprovider1.trust-provider")}
	b := newPolkitBench(t, a)
	p, config := b.provider()
	ui, other := b.client(harness.Alice), b.client(harness.Alice)
	ui.must(ui.config(config, "Connect", dict{}))
	a.hangOn("org.vpnprovider1.connect", "org.vpnprovider1.manage-others", "org.vpnprovider1.trust-provider")

	refused := other.Object(wire.BusName, config).Go(wire.ConfigInterface+".Disconnect", 0, nil, dict{}).Done
	other.must(other.manager("ListConfigs"))
	if len(refused) > 0 {
		t.Error("another call of the caller waited for polkit, too")
	}
	ui.must(ui.config(config, "Disconnect", dict{})) // it has connected it
	other.refused(<-refused, wire.ErrTimeout)

	waiting := other.Object(wire.BusName, config).Go(wire.ConfigInterface+".Connect", 0, nil, dict{}).Done
	other.must(other.manager("ListConfigs"))
	ui.must(ui.config(config, "Disconnect", dict{})) // which is nothing but to cancel
	if text := other.refused(<-waiting, wire.ErrFailed); text != "cancelled" {
		t.Errorf("the error is %q", text)
	}
	other.refused(other.call(wire.ConfigRoot+"/0", wire.ConfigInterface+".Remove", dict{}), wire.ErrNotFound)
	if err := p.state(config, wire.StateIdle); err != nil {
		t.Error(err)
	}
}

// The provider of a session and who connected it end it unasked; others of the
// user have to be allowed to.
func TestDisconnectUnasked(t *testing.T) {
	a := &authority{yes: append(own(), "org.vpnprovider1.trust-provider")}
	b := newPolkitBench(t, a)
	p, config := b.provider()
	ui, other := b.client(harness.Alice), b.client(harness.Alice)
	for _, by := range []*client{p, ui} {
		a.decide(append(own(), "org.vpnprovider1.trust-provider"), nil)
		var session godbus.ObjectPath
		ui.must(ui.config(config, "Connect", dict{}), &session)
		a.decide(nil, own())
		other.refused(other.config(config, "Disconnect", dict{}), wire.ErrNotAuthorized)
		other.refused(other.session(session, "Disconnect", dict{}), wire.ErrNotAuthorized)
		by.must(by.config(config, "Disconnect", dict{}))
		other.must(other.config(config, "Disconnect", dict{})) // there is nothing to end
	}
}

// Who may manage what belongs to others finds, uses and removes it; for others
// it is not there, and nobody is asked whether it is.
func TestManageOthers(t *testing.T) {
	a := &authority{yes: append(own(), "org.vpnprovider1.trust-provider")}
	b := newPolkitBench(t, a)
	alice, config := b.provider()
	bob := b.client(harness.Bob)
	hers := dict{"owner": godbus.MakeVariant(uint32(harness.Alice))}
	none := godbus.ObjectPath(wire.ConfigRoot + "/0")
	for _, path := range []godbus.ObjectPath{config, none} {
		for _, member := range []string{"Connect", "Disconnect", "Remove", "ShowConfigureDialog", "Update"} {
			bob.refused(<-bob.interactively(path, wire.ConfigInterface, member, dict{}), wire.ErrNotFound)
		}
		bob.refused(<-bob.interactively(wire.RootPath, wire.ManagerInterface, "DestroyConfig", path, dict{}), wire.ErrNotFound)
	}
	bob.refused(bob.manager("FindConfig", app, "Work", hers), wire.ErrNotFound)
	bob.refused(bob.manager("ForgetProvider", app, hers), wire.ErrNotAuthorized)
	bob.refused(bob.manager("ShowAddDialog", app, hers), wire.ErrNotAuthorized)
	if asked := a.questionsAsked(); len(asked) != 0 {
		t.Fatalf("a person was asked %q", asked)
	}
	done := bob.interactively(wire.RootPath, wire.ManagerInterface, "FindConfig", app, "Work", hers)
	a.answerNext(t, "no")
	bob.refused(<-done, wire.ErrNotFound)

	a.decide([]string{"org.vpnprovider1.manage-others", "org.vpnprovider1.trust-provider"}, nil)
	var found, made, session godbus.ObjectPath
	bob.must(bob.manager("FindConfig", app, "Work", hers), &found)
	if found != config {
		t.Errorf("found %s, want %s", found, config)
	}
	bob.must(bob.config(config, "Connect", dict{}), &session)
	if state := bob.get(config, wire.ConfigInterface, "State"); state != wire.StateConnecting {
		t.Errorf("State is %v", state)
	}
	bob.refused(bob.session(session, "SetParameters", dict{}), wire.ErrNotOwner)
	bob.must(bob.session(session, "Disconnect", dict{}))
	bob.must(bob.config(config, "Update", dict{"autoConnect": godbus.MakeVariant(true)}))
	bob.must(bob.manager("ShowAddDialog", app, hers))
	bob.must(bob.manager("CreateConfig", app, "Made", hers), &made)
	bob.must(bob.config(made, "Remove", dict{}))
	bob.must(bob.manager("CreateConfig", app, "Made", hers), &made)
	bob.must(bob.manager("DestroyConfig", made, dict{}))
	var list []any
	bob.must(bob.manager("ListConfigs"), &list)
	if len(list) != 0 {
		t.Errorf("unasked for, Bob sees %v", list)
	}
	bob.refused(bob.manager("ForgetProvider", "", hers), wire.ErrInvalidParameter)
	bob.must(bob.manager("ForgetProvider", app, hers))
	alice.refused(alice.config(config, "Connect", dict{}), wire.ErrNotFound)
	// Connecting was a consent of hers, which is gone with the app.
	bob.refused(bob.manager("ForgetProvider", "com.example.None", hers), wire.ErrNotFound)
}

// Without polkit there is no consent to ask for, and only root manages what
// belongs to others.
func TestOwnerMode(t *testing.T) {
	b := newBench(t)
	p, config := b.provider()
	p.must(p.config(config, "Connect", dict{}))
	p.must(p.config(config, "Disconnect", dict{}))
	hers := dict{"owner": godbus.MakeVariant(uint32(harness.Alice))}
	bob, root := b.client(harness.Bob), b.client(0)
	bob.refused(bob.manager("ForgetProvider", app, hers), wire.ErrNotAuthorized)
	bob.refused(bob.manager("FindConfig", app, "Work", hers), wire.ErrNotFound)
	bob.refused(bob.config(config, "Remove", dict{}), wire.ErrNotFound)
	root.must(root.manager("ShowAddDialog", app, hers))
	root.must(root.manager("ForgetProvider", app, hers))
	root.refused(root.manager("FindConfig", app, "Work", hers), wire.ErrNotFound)
}
