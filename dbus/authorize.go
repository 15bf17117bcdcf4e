package dbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/driver"
)

// The polkit actions.
const (
	actionManageOwn    = "org.vpnprovider1.manage-own"
	actionTrust        = "org.vpnprovider1.trust-provider"
	actionConnect      = "org.vpnprovider1.connect"
	actionCapture      = "org.vpnprovider1.capture"
	actionManageOthers = "org.vpnprovider1.manage-others"
	actionSetLockdown  = "org.vpnprovider1.set-lockdown"
)

const (
	polkitName = "org.freedesktop.PolicyKit1"
	polkitPath = "/org/freedesktop/PolicyKit1/Authority"
	polkitCall = polkitName + ".Authority.CheckAuthorization"

	// polkitTimeout bounds an answer that asks nobody, promptTimeout one for
	// which a person types a password.
	polkitTimeout = 5 * time.Second
	promptTimeout = 5 * time.Minute

	// patience is how long the sender's next call waits for such an answer.
	// polkit has mostly answered by then, and what a client sends without
	// waiting for replies keeps its order.
	patience = 250 * time.Millisecond

	allowInteraction = 1
)

// question is what polkit is asked about a caller.
type question struct {
	action string

	// app goes into the text of a prompt, and polkit's rules can look it up.
	// Empty: the action is not about one.
	app string
}

// authorize asks whether the caller may. Everything but a clear yes is no. A
// person is asked only where nothing else decides and the caller wants it.
func (r *request) authorize(ctx context.Context, action string) error {
	return r.authorizeFor(ctx, question{action: action})
}

func (r *request) authorizeFor(ctx context.Context, q question) error {
	if r.caller.UID == 0 || !r.opts.Polkit {
		return nil
	}
	answer, err := r.ask(ctx, q, polkitTimeout, 0)
	if err == nil && !answer.Allowed && answer.Challenge && r.interactive && !r.quiet {
		if err := r.prompts.begin(r.peer.name, r.caller.UID); err != nil {
			return err
		}
		defer r.prompts.end(r.peer.name)
		r.detach()
		answer, err = r.ask(ctx, q, promptTimeout, allowInteraction)
	}
	if err == nil && !answer.Allowed {
		err = driver.Errorf(driver.KindNotAuthorized, "%s", q.refusal(answer))
	}
	return err
}

func (q question) refusal(answer polkitAnswer) string {
	why := "polkit does not allow " + q.action
	switch {
	case answer.Details["polkit.dismissed"] != "":
		why = "the question about " + q.action + " was dismissed"
	case answer.Challenge:
		why = q.action + " needs a password, and nobody can be asked for it"
	}
	if q.action == actionTrust {
		return fmt.Sprintf("app %q has no consent to connect yet: %s", q.app, why)
	}
	return why
}

// trust gives what asks whether an app may carry the host's traffic, before its
// first connect: nil where no consent is needed, and so none is given.
func (r *request) trust(asks bool) func(ctx context.Context, app string) error {
	if r.caller.UID == 0 || !r.opts.Polkit {
		return nil
	}
	return func(ctx context.Context, app string) error {
		if !asks { // and a rule of polkit's is no consent either
			return driver.Errorf(driver.KindNotAuthorized, "app %q has no consent to connect yet", app)
		}
		return r.authorizeFor(ctx, question{action: actionTrust, app: app})
	}
}

// authorizeOthers asks whether the caller may manage what belongs to other
// users. Where it was found to be so already, it is not asked again.
func (r *request) authorizeOthers(ctx context.Context) error {
	switch {
	case r.caller.Others:
		return nil
	case r.caller.UID != 0 && !r.opts.Polkit:
		return driver.Errorf(driver.KindNotAuthorized, "only root may manage what belongs to other users")
	}
	if err := r.authorize(ctx, actionManageOthers); err != nil {
		return err
	}
	r.caller.Others = true
	return nil
}

// authorizeOn asks about an action on what owner owns: on what is another
// user's there is but one.
func (r *request) authorizeOn(ctx context.Context, owner uint32, action string) error {
	if owner != r.caller.UID {
		return r.authorizeOthers(ctx)
	}
	return r.authorize(ctx, action)
}

// seesOthers says whether the caller may manage what belongs to other users,
// without asking anybody for it: it is about objects that may not exist, and a
// prompt would tell that they do.
func (r *request) seesOthers() bool {
	quiet := r.quiet
	r.quiet = true
	defer func() { r.quiet = quiet }()
	return r.authorizeOthers(r.ctx) == nil
}

// prompts are the questions to persons that are open. A caller that nobody
// answers must not take up the calls of all others, nor fill a screen.
type prompts struct {
	mu   sync.Mutex
	open map[string]uint32 // the uid, of the connection that has one
}

// promptsPerUser is how many may be open, one a connection.
const promptsPerUser = 2

func (p *prompts) begin(conn string, uid uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	own := 0
	for _, u := range p.open {
		if u == uid {
			own++
		}
	}
	if _, twice := p.open[conn]; twice || own >= promptsPerUser {
		return driver.Errorf(driver.KindLimitExceeded, "the user is being asked already, by %d callers", own)
	}
	if p.open == nil {
		p.open = make(map[string]uint32)
	}
	p.open[conn] = uid
	return nil
}

func (p *prompts) end(conn string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, conn)
}

// ask is askPolkit within limits, with an error that is the caller's to see.
func (r *request) ask(ctx context.Context, q question, limit time.Duration, flags uint32) (polkitAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(r.peer.ctx, cancel)() // nobody is left to ask for
	answer, err := r.askPolkit(ctx, q, flags)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return polkitAnswer{}, driver.Errorf(driver.KindTimeout, "polkit did not answer within %s", limit)
	case err != nil:
		r.log.Warn("cannot ask polkit", "action", q.action, "error", err)
		return polkitAnswer{}, driver.Errorf(driver.KindNotAuthorized, "polkit cannot be asked for %s", q.action)
	}
	return answer, nil
}

type polkitSubject struct {
	Kind    string
	Details dict
}

type polkitAnswer struct {
	Allowed, Challenge bool
	Details            map[string]string
}

// askPolkit names the caller by its connection: a process id could be another
// process' by the time that polkit looks at it.
func (r *request) askPolkit(ctx context.Context, q question, flags uint32) (answer polkitAnswer, err error) {
	subject := polkitSubject{"system-bus-name", dict{"name": godbus.MakeVariant(r.peer.name)}}
	details, cancellation := map[string]string{}, ""
	if q.app != "" {
		details["app"] = q.app
	}
	if flags&allowInteraction != 0 {
		cancellation = fmt.Sprintf("%s-%d", r.peer.name, r.serial)
	}
	authority := r.conn.Object(polkitName, polkitPath)
	call := authority.GoWithContext(ctx, polkitCall, 0, make(chan *godbus.Call, 1), subject, q.action, details, flags, cancellation)
	select {
	case <-call.Done:
	case <-time.After(patience):
		r.detach()
		<-call.Done
	}
	err = call.Store(&answer)
	if err != nil && cancellation != "" && ctx.Err() != nil {
		authority.Go(polkitName+".Authority.CancelCheckAuthorization", godbus.FlagNoReplyExpected, nil, cancellation)
	}
	return answer, err
}
