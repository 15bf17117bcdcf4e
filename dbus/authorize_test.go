package dbus_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus"
	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	polkitName      = "org.freedesktop.PolicyKit1"
	polkitPath      = "/org/freedesktop/PolicyKit1/Authority"
	polkitInterface = polkitName + ".Authority"
)

// authority stands in for polkitd: it allows what is in yes, refuses what is in
// no, never answers about what is in hang, and would ask a person about the
// rest.
type authority struct {
	yes, no, hang []string

	mu        sync.Mutex
	asked     []string               // of a person, in order: action and app
	waiting   map[string]chan string // by cancellation: what the person says
	cancelled []string
}

type subject struct {
	Kind    string
	Details dict
}

type answer struct {
	Allowed, Challenge bool
	Details            map[string]string
}

// CheckAuthorization is polkit's.
func (a *authority) CheckAuthorization(s subject, action string, details map[string]string, flags uint32, cancellation string) (answer, *godbus.Error) {
	a.mu.Lock()
	yes, no, hang := slices.Contains(a.yes, action), slices.Contains(a.no, action), slices.Contains(a.hang, action)
	a.mu.Unlock()
	switch {
	case hang:
		select {} // until the test's process ends
	case s.Kind != "system-bus-name":
		return answer{}, godbus.MakeFailedError(fmt.Errorf("subject %v", s))
	case yes:
		return answer{Allowed: true}, nil
	case no:
		return answer{}, nil
	case flags == 0:
		return answer{Challenge: true}, nil
	}
	said := make(chan string, 1)
	a.mu.Lock()
	a.asked = append(a.asked, strings.TrimSpace(action+" "+details["app"]))
	a.waiting[cancellation] = said
	a.mu.Unlock()
	switch <-said {
	case "yes":
		return answer{Allowed: true}, nil
	case "no":
		return answer{}, nil
	case "dismiss":
		return answer{Details: map[string]string{"polkit.dismissed": "true"}}, nil
	}
	return answer{}, godbus.NewError(polkitName+".Error.Cancelled", []any{"cancelled"})
}

// CancelCheckAuthorization is polkit's.
func (a *authority) CancelCheckAuthorization(cancellation string) *godbus.Error {
	a.mu.Lock()
	a.cancelled = append(a.cancelled, cancellation)
	a.mu.Unlock()
	a.say(cancellation, "cancel")
	return nil
}

// decide changes what is allowed, and what is refused.
func (a *authority) decide(yes, no []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.yes, a.no = yes, no
}

// hangOn is what no answer comes about from now on.
func (a *authority) hangOn(actions ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hang = actions
}

func (a *authority) say(cancellation, what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if said, ok := a.waiting[cancellation]; ok {
		said <- what
		delete(a.waiting, cancellation)
	}
}

// questions waits until a person is asked n questions, and gives their ids.
func (a *authority) questions(t *testing.T, n int) (open []string) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, "questions", func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		open = open[:0]
		for id := range a.waiting {
			open = append(open, id)
		}
		if len(open) != n {
			return fmt.Errorf("%d questions are open, want %d (%q were asked)", len(open), n, a.asked)
		}
		return nil
	})
	return open
}

func (a *authority) requireCancelled(t *testing.T, n int) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, "the prompts are gone", func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.cancelled) != n {
			return fmt.Errorf("%q were cancelled, want %d", a.cancelled, n)
		}
		return nil
	})
}

func newPolkitBench(t *testing.T, a *authority) *bench {
	t.Helper()
	b := newBench(t, func(o *dbus.Options) { o.Polkit = true })
	a.waiting = make(map[string]chan string)
	conn := b.bus.Dial(t)
	if err := conn.Export(a, polkitPath, polkitInterface); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(polkitName, 0); err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	return b
}

// interactively begins a call of a caller who lets a person be asked. (godbus'
// own calls leave that flag out.)
func (c *client) interactively(path godbus.ObjectPath, iface, member string, args ...any) <-chan *godbus.Call {
	message := &godbus.Message{
		Type: godbus.TypeMethodCall, Flags: godbus.FlagAllowInteractiveAuthorization, Body: args,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(wire.BusName),
			godbus.FieldPath:        godbus.MakeVariant(path),
			godbus.FieldInterface:   godbus.MakeVariant(iface),
			godbus.FieldMember:      godbus.MakeVariant(member),
			godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf(args...)),
		},
	}
	return c.Send(message, make(chan *godbus.Call, 1)).Done
}

func (c *client) connectInteractively(config godbus.ObjectPath) <-chan *godbus.Call {
	return c.interactively(config, wire.ConfigInterface, "Connect", dict{})
}

// What is allowed or refused is so without a person, also where one could be
// asked.
func TestPolkitAnswers(t *testing.T) {
	a := &authority{yes: []string{"org.vpnprovider1.manage-own"}, no: []string{"org.vpnprovider1.connect"}}
	b := newPolkitBench(t, a)
	p, config := b.provider()
	// Pipelined: nobody waits for a person, so the order is kept.
	var calls []<-chan *godbus.Call
	for i := range 10 {
		calls = append(calls, p.interactively(wire.RootPath, wire.ManagerInterface, "CreateConfig", app, fmt.Sprint(i), dict{}))
	}
	for _, done := range calls {
		p.must(<-done)
	}
	p.refused(p.config(config, "Connect", dict{}), wire.ErrNotAuthorized)
	p.refused(<-p.connectInteractively(config), wire.ErrNotAuthorized)
	b.client(0).must(b.client(0).config(config, "Connect", dict{}))
	if len(a.asked) != 0 {
		t.Errorf("a person was asked about %q", a.asked)
	}
}

// Who is the provider already is not asked about again: after a restart it
// registers once more, and polkit may want a password where nobody sits.
func TestProviderRegistersAgain(t *testing.T) {
	a := &authority{yes: []string{"org.vpnprovider1.manage-own"}}
	b := newPolkitBench(t, a)
	p, _ := b.provider()
	a.decide(nil, []string{"org.vpnprovider1.manage-own"})
	p.must(p.manager("RegisterProvider", app, dict{"displayName": godbus.MakeVariant("Renamed")}))
	p.refused(p.manager("RegisterProvider", app+".Other", dict{}), wire.ErrNotAuthorized)
	other := b.client(harness.Alice)
	other.refused(other.manager("RegisterProvider", app, dict{"replace": godbus.MakeVariant(true)}), wire.ErrNotAuthorized)
}

// A person is asked where the caller lets it; the caller's other calls go on
// meanwhile, and few such questions are open at a time.
func TestPrompts(t *testing.T) {
	a := &authority{yes: []string{"org.vpnprovider1.manage-own", "org.vpnprovider1.trust-provider"}}
	b := newPolkitBench(t, a)
	p, config := b.provider()
	p.refused(p.config(config, "Connect", dict{}), wire.ErrNotAuthorized) // nobody may be asked

	first := p.connectInteractively(config)
	ids := a.questions(t, 1)
	p.must(p.manager("ListConfigs"))
	p.refused(<-p.connectInteractively(config), wire.ErrLimitExceeded)
	second := b.client(harness.Alice)
	secondDone := second.connectInteractively(config)
	a.questions(t, 2)
	third := b.client(harness.Alice)
	third.refused(<-third.connectInteractively(config), wire.ErrLimitExceeded)

	bob := b.client(harness.Bob)
	bob.must(bob.manager("RegisterProvider", app, dict{}))
	var bobs godbus.ObjectPath
	bob.must(bob.manager("CreateConfig", app, "Bob's", dict{}), &bobs)
	bobDone := bob.connectInteractively(bobs)
	a.questions(t, 3)

	a.say(ids[0], "yes")
	p.must(<-first)
	second.Close() // nobody is left to ask for
	a.questions(t, 1)
	<-secondDone
	a.requireCancelled(t, 1)
	for _, id := range a.questions(t, 1) {
		a.say(id, "no")
	}
	bob.refused(<-bobDone, wire.ErrNotAuthorized)

	// Answered: another may be asked.
	p.must(b.client(0).config(config, "Disconnect", dict{}))
	again := p.connectInteractively(config)
	for _, id := range a.questions(t, 1) {
		a.say(id, "yes")
	}
	p.must(<-again)
}

// Disconnect cancels a Connect that waits for a person.
func TestPromptCancelled(t *testing.T) {
	a := &authority{yes: []string{"org.vpnprovider1.manage-own"}}
	b := newPolkitBench(t, a)
	p, config := b.provider()
	done := p.connectInteractively(config)
	a.questions(t, 1)
	b.client(0).must(b.client(0).config(config, "Disconnect", dict{}))
	call := <-done
	if text := p.refused(call, wire.ErrFailed); text != "cancelled" {
		t.Errorf("the error is %q", text)
	}
	a.questions(t, 0)
	a.requireCancelled(t, 1)
}
