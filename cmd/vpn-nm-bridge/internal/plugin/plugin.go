// Package plugin is the VPN plugin that NetworkManager runs, a process for
// each connection. It knows nothing of VPNs, and may do nothing: it says to
// NetworkManager what the bridge in the session of the profile's user says
// about the connection, which is all that makes the difference between the
// states of NetworkManager's own menu.
//
// What it says is always the same configuration, one with which NetworkManager
// touches no address, no route and no DNS server. So whoever speaks to it, the
// worst is a wrong mark in the menu of one user.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/nm"
	"github.com/vpnprovider/vpnproviderd/dbus/stream"
)

// UIDKey is the key of a profile's data that says whose bridge speaks for it.
// Who may write the profile decides.
const UIDKey = "uid"

const (
	path  godbus.ObjectPath = "/org/freedesktop/NetworkManager/VPN/Plugin"
	iface string            = "org.freedesktop.NetworkManager.VPN.Plugin"
)

// States of a plugin, as NetworkManager counts.
const (
	stateStarting uint32 = 3
	stateStarted  uint32 = 4
	stateStopping uint32 = 5
	stateStopped  uint32 = 6
)

// failureConnect is the kind of failure that is neither a wrong password nor a
// wrong configuration.
const failureConnect uint32 = 1

// answerTime is how long godbus may take to send what a method has returned. It
// does not tell when it has.
const answerTime = 200 * time.Millisecond

// plugin is one connection. mu is held while it speaks, so that its signals
// are in order.
type plugin struct {
	conn *godbus.Conn
	log  *slog.Logger
	over chan struct{} // closed when there is nothing more to say

	mu      sync.Mutex
	manager string          // NetworkManager's unique name, once it told us to connect
	uid     uint32          // who speaks for the profile, from then on
	early   map[uint32]tale // what was said before, by whom
	ended   bool
}

// tale is what the user's bridge says.
type tale struct {
	word   nm.Word
	reason string
}

// Dial connects to the bus at an address; "" is the system bus. What strangers
// send is not decoded. ctx bounds Dial alone.
func Dial(ctx context.Context, address string) (*godbus.Conn, error) {
	s := stream.New(stream.Options{
		Trusted: func(stream.Header) bool { return true }, // the bus policy lets root alone call
		Signal: func(h stream.Header) bool {
			return h.Interface == nm.TellInterface && h.Member == nm.TellMember && h.Signature == "ss"
		},
	})
	conn, err := s.Open(ctx, address, godbus.WithSignalHandler(godbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, fmt.Errorf("cannot reach the bus: %w", err)
	}
	return conn, nil
}

// Run is the plugin under a bus name, until NetworkManager or the user's
// bridge ends the connection, NetworkManager leaves the bus, or ctx is done.
// It closes conn, which is one of Dial's.
func Run(ctx context.Context, conn *godbus.Conn, name string, log *slog.Logger) error {
	defer conn.Close()
	p := &plugin{conn: conn, log: log, over: make(chan struct{}), early: make(map[uint32]tale)}
	signals := make(chan *godbus.Signal, 16)
	conn.Signal(signals)
	err := conn.AddMatchSignalContext(
		ctx, godbus.WithMatchSender("org.freedesktop.DBus"), godbus.WithMatchInterface("org.freedesktop.DBus"),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, nm.BusName),
	)
	if err == nil {
		err = conn.ExportMethodTable(p.methods(), path, iface)
	}
	if err != nil {
		return fmt.Errorf("cannot be a plugin: %w", err)
	}
	reply, err := conn.RequestName(name, godbus.NameFlagDoNotQueue)
	if err != nil {
		return fmt.Errorf("cannot own the name %s: %w", name, err)
	}
	if reply != godbus.RequestNameReplyPrimaryOwner {
		return fmt.Errorf("cannot own the name %s: somebody does", name)
	}
	for {
		select {
		case sig, ok := <-signals:
			if !ok {
				return errors.New("the connection to the bus was lost")
			}
			if p.take(ctx, sig) {
				return nil
			}
		case <-p.over:
			// The bus has read the rest when it answers.
			_ = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetId", 0).Err
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// methods is the interface that NetworkManager calls. The bus policy lets
// nobody but root call it.
func (p *plugin) methods() map[string]any {
	return map[string]any{
		"NeedSecrets": func(settings) (string, *godbus.Error) { return "", nil }, // the app asks itself
		"NewSecrets":  func(settings) *godbus.Error { return nil },
		"Connect":     p.connect,
		"ConnectInteractive": func(settings, map[string]godbus.Variant) *godbus.Error {
			return godbus.NewError(nm.BusName+".VPN.Error.InteractiveNotSupported", []any{"there is nothing to ask"})
		},
		"Disconnect": p.disconnect,
	}
}

type settings = map[string]map[string]godbus.Variant

func (p *plugin) connect(s settings, sender godbus.Sender) *godbus.Error {
	uid, err := strconv.ParseUint(nm.Settings(s).Data()[UIDKey], 10, 32)
	if err != nil {
		return godbus.NewError(nm.BusName+".VPN.Error.BadArguments", []any{"the profile names no user"})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.manager, p.uid = string(sender), uint32(uid)
	p.say("StateChanged", stateStarting)
	if t, ok := p.early[p.uid]; ok {
		p.tell(t)
	}
	p.early = nil
	return nil
}

func (p *plugin) disconnect() *godbus.Error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.say("StateChanged", stateStopping)
	p.say("StateChanged", stateStopped)
	if !p.ended {
		p.ended = true
		time.AfterFunc(answerTime, func() { close(p.over) })
	}
	return nil
}

// take takes a signal, and says whether it is the end.
func (p *plugin) take(ctx context.Context, sig *godbus.Signal) (gone bool) {
	switch {
	case sig.Sender == "org.freedesktop.DBus":
		return sig.Name == "org.freedesktop.DBus.NameOwnerChanged" && len(sig.Body) == 3 && sig.Body[2] == ""
	case sig.Name == nm.TellInterface+"."+nm.TellMember:
		p.told(ctx, sig)
	}
	return false
}

// told hears the user's bridge. It may be before NetworkManager says whose
// profile it is: then the last word of each is kept.
func (p *plugin) told(ctx context.Context, sig *godbus.Signal) {
	var t tale
	if godbus.Store(sig.Body, &t.word, &t.reason) != nil {
		return
	}
	var uid uint32
	err := p.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixUser", 0, sig.Sender).Store(&uid)
	if err != nil {
		return // it has left
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.manager == "" && len(p.early) < 16: // more is nobody's bridge
		p.early[uid] = t
	case p.manager == "":
	case uid != p.uid:
		p.log.Warn("another user speaks for the connection", "uid", uid)
	default:
		p.tell(t)
	}
}

// tell tells NetworkManager. The lock is held.
func (p *plugin) tell(t tale) {
	switch t.word {
	case nm.Connected:
		p.say("Config", shadow())
		p.say("StateChanged", stateStarted)
	case nm.Failed:
		p.log.Warn("the VPN failed", "reason", t.reason)
		p.say("Failure", failureConnect)
		p.say("StateChanged", stateStopped)
		p.end()
	case nm.Lost:
		p.log.Warn("the VPN's app is not there", "reason", t.reason)
		p.end() // NetworkManager sees the name go, and says so to the user
	}
}

// shadow is the configuration of a VPN that is somebody else's: no device, no
// address. NetworkManager wants the address of a server, to add a route to it
// on the device below; to this machine itself there is none.
func shadow() map[string]godbus.Variant {
	return map[string]godbus.Variant{
		"tundev":      godbus.MakeVariant("_none_"),
		"gateway":     godbus.MakeVariant(loopback()),
		"has-ip4":     godbus.MakeVariant(false),
		"has-ip6":     godbus.MakeVariant(false),
		"can-persist": godbus.MakeVariant(true),
	}
}

// say sends a signal to NetworkManager alone. The lock is held.
func (p *plugin) say(member string, arg any) {
	if p.manager == "" || p.ended {
		return
	}
	if err := nm.Signal(p.conn, p.manager, path, iface+"."+member, arg); err != nil {
		p.log.Warn("NetworkManager cannot be told", "error", err)
	}
}

func (p *plugin) end() {
	if !p.ended {
		p.ended = true
		close(p.over)
	}
}
