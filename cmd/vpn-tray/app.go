package main

import (
	"context"
	"log"
	"time"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

const (
	// callLimit bounds calls of the daemon's that ask nobody, and askLimit
	// those for which the user may have to give a password.
	callLimit = 30 * time.Second
	askLimit  = 3 * time.Minute

	// settleTime is how long changes are collected before they are shown: a
	// connect is half a dozen of them.
	settleTime = 30 * time.Millisecond
)

// app is what runs between the daemon, the model and the desktop. Its fields
// belong to the goroutine in run; others post what is to be done there.
type app struct {
	tell       func(model.Notice)
	quit       func()
	complaints *log.Logger

	todo  chan func()
	retry chan struct{} // wakes who waits to reach the bus

	model     *model.Model
	daemon    *client.Client // nil while there is no connection
	reading   bool           // of providers and health
	readAgain bool
}

func newApp(tell func(model.Notice), quit func(), complaints *log.Logger) *app {
	return &app{
		tell: tell, quit: quit, complaints: complaints,
		todo: make(chan func()), retry: make(chan struct{}, 1), model: model.New(),
	}
}

// run does what is posted, and shows what follows from it, until ctx is done.
func (a *app) run(ctx context.Context, show func(model.View)) {
	wake := time.NewTimer(0)
	defer wake.Stop()
	var due time.Time // when wake comes
	for {
		select {
		case <-ctx.Done():
			return
		case do := <-a.todo:
			do()
			if soon := time.Now().Add(settleTime); due.IsZero() || due.After(soon) {
				due = soon
				wake.Reset(settleTime)
			}
		case <-wake.C:
			now := time.Now()
			for _, n := range a.model.Due(now) {
				a.tell(n)
			}
			show(a.model.View())
			if due = a.model.Next(); !due.IsZero() {
				wake.Reset(due.Sub(now))
			}
		}
	}
}

// post has something done in run. It must not be called there.
func (a *app) post(ctx context.Context, do func()) {
	select {
	case a.todo <- do:
	case <-ctx.Done():
	}
}

// click does what the user wants.
func (a *app) click(ctx context.Context, wanted model.Action) {
	switch {
	case wanted.Verb == model.Quit:
		a.quit()
	case wanted.Verb == model.Opened:
		a.read(ctx)
	case wanted.Verb == model.Retry && a.daemon == nil:
		select {
		case a.retry <- struct{}{}:
		default:
		}
	case a.daemon == nil:
		a.model.Answered(wanted, client.ErrNotRunning)
	default:
		a.model.Asked(wanted)
		d := a.daemon
		go func() {
			err := perform(ctx, d, wanted)
			a.post(ctx, func() {
				a.model.Answered(wanted, err)
				a.read(ctx)
			})
		}()
	}
}

// perform asks the daemon for what the user wants.
func perform(ctx context.Context, d *client.Client, wanted model.Action) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	switch wanted.Verb {
	case model.Connect:
		_, err := d.Config(wanted.Target).Connect(ctx)
		return err
	case model.Disconnect:
		return d.Config(wanted.Target).Disconnect(ctx)
	case model.Configure:
		return d.Config(wanted.Target).ShowConfigureDialog(ctx)
	case model.Add:
		return d.ShowAddDialog(ctx, wanted.Target)
	case model.Unlock:
		return d.Unlock(ctx)
	default: // a call is what starts the daemon
		_, err := d.Properties(ctx)
		return err
	}
}

// read reads what Watch does not tell.
func (a *app) read(ctx context.Context) {
	if a.daemon == nil || !a.model.Running() {
		return // a call would start it
	}
	if a.reading {
		a.readAgain = true
		return
	}
	a.reading, a.readAgain = true, false
	d := a.daemon
	go func() {
		limited, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		providers, err := d.ListProviders(limited)
		daemon, other := d.Properties(limited)
		if err == nil && other == nil { // else it is away, and read when it is back
			a.post(ctx, func() {
				a.model.SetProviders(providers)
				a.model.SetHealth(daemon.Health)
			})
		}
		a.post(ctx, func() {
			a.reading = false
			if a.readAgain {
				a.read(ctx)
			}
		})
	}()
}
