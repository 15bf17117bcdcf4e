package dbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/driver"
)

// The polkit actions.
const (
	actionManageOwn    = "org.vpnprovider1.manage-own"
	actionConnect      = "org.vpnprovider1.connect"
	actionManageOthers = "org.vpnprovider1.manage-others"
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

// authorize asks whether the caller may. Everything but a clear yes is no.
func (r *request) authorize(ctx context.Context, action string) error {
	if r.caller.UID == 0 || !r.opts.Polkit {
		return nil
	}
	limit, flags := polkitTimeout, uint32(0)
	if r.interactive {
		limit, flags = promptTimeout, allowInteraction
		r.detach()
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(r.peer.ctx, cancel)() // nobody is left to ask for
	allowed, err := r.askPolkit(ctx, action, flags)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return driver.Errorf(driver.KindTimeout, "polkit did not answer within %s", limit)
	case err != nil:
		r.log.Warn("cannot ask polkit", "action", action, "error", err)
		return driver.Errorf(driver.KindNotAuthorized, "polkit cannot be asked for %s", action)
	case !allowed:
		return driver.Errorf(driver.KindNotAuthorized, "polkit does not allow %s", action)
	}
	return nil
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
func (r *request) askPolkit(ctx context.Context, action string, flags uint32) (bool, error) {
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
	return err == nil && answer.Allowed, err
}
