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

	allowInteraction = 1
)

// authorize asks whether the caller may. Everything but a clear yes is no. A
// person is asked only where nothing else decides and the caller wants it.
func (r *request) authorize(ctx context.Context, action string) error {
	if r.caller.UID == 0 || !r.opts.Polkit {
		return nil
	}
	answer, err := r.ask(ctx, action, polkitTimeout, 0)
	if err == nil && !answer.Allowed && answer.Challenge && r.interactive {
		if err := r.prompts.begin(r.peer.name, r.caller.UID); err != nil {
			return err
		}
		defer r.prompts.end(r.peer.name)
		r.detach()
		answer, err = r.ask(ctx, action, promptTimeout, allowInteraction)
	}
	if err == nil && !answer.Allowed {
		err = driver.Errorf(driver.KindNotAuthorized, "polkit does not allow %s", action)
	}
	return err
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
func (r *request) ask(ctx context.Context, action string, limit time.Duration, flags uint32) (polkitAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(r.peer.ctx, cancel)() // nobody is left to ask for
	answer, err := r.askPolkit(ctx, action, flags)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return polkitAnswer{}, driver.Errorf(driver.KindTimeout, "polkit did not answer within %s", limit)
	case err != nil:
		r.log.Warn("cannot ask polkit", "action", action, "error", err)
		return polkitAnswer{}, driver.Errorf(driver.KindNotAuthorized, "polkit cannot be asked for %s", action)
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
func (r *request) askPolkit(ctx context.Context, action string, flags uint32) (polkitAnswer, error) {
	subject := polkitSubject{"system-bus-name", dict{"name": godbus.MakeVariant(r.peer.name)}}
	cancellation := ""
	if flags&allowInteraction != 0 {
		cancellation = fmt.Sprintf("%s-%d", r.peer.name, r.serial)
	}
	authority := r.conn.Object(polkitName, polkitPath)
	var answer polkitAnswer
	err := authority.CallWithContext(ctx, polkitCall, 0, subject, action, map[string]string{}, flags, cancellation).Store(&answer)
	if err != nil && cancellation != "" && ctx.Err() != nil {
		authority.Go(polkitName+".Authority.CancelCheckAuthorization", godbus.FlagNoReplyExpected, nil, cancellation)
	}
	return answer, err
}
