package system

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

type dict = map[string]godbus.Variant

// conn is one connection to the bus, with the signals that it gets. It is
// used by one goroutine at a time; call, manager and on by several.
type conn struct {
	*godbus.Conn
	t       testing.TB
	signals chan *godbus.Signal
}

func (m *machine) dial(t testing.TB, uid uint32) *conn {
	t.Helper()
	// godbus keeps the order of signals while there is room for them.
	c := &conn{Conn: m.bus.DialAs(t, uid), t: t, signals: make(chan *godbus.Signal, 1<<14)}
	c.Signal(c.signals)
	return c
}

func (c *conn) call(path godbus.ObjectPath, method string, args ...any) *godbus.Call {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Timeout)
	defer cancel()
	return c.Object(wire.BusName, path).CallWithContext(ctx, method, 0, args...)
}

func (c *conn) manager(member string, args ...any) *godbus.Call {
	return c.call(wire.RootPath, wire.ManagerInterface+"."+member, args...)
}

func (c *conn) on(path godbus.ObjectPath, member string, args ...any) *godbus.Call {
	return c.call(path, interfaceOf(path)+"."+member, args...)
}

// begin is on, without waiting for the answer.
func (c *conn) begin(path godbus.ObjectPath, member string, args ...any) <-chan *godbus.Call {
	return c.Object(wire.BusName, path).Go(interfaceOf(path)+"."+member, 0, make(chan *godbus.Call, 1), args...).Done
}

// beginInteractively is begin, for a caller who lets polkit ask a person.
// (godbus' own calls leave that flag out.)
func (c *conn) beginInteractively(path godbus.ObjectPath, member string, args ...any) <-chan *godbus.Call {
	message := &godbus.Message{
		Type: godbus.TypeMethodCall, Flags: godbus.FlagAllowInteractiveAuthorization, Body: args,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(wire.BusName),
			godbus.FieldPath:        godbus.MakeVariant(path),
			godbus.FieldInterface:   godbus.MakeVariant(interfaceOf(path)),
			godbus.FieldMember:      godbus.MakeVariant(member),
			godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf(args...)),
		},
	}
	return c.Send(message, make(chan *godbus.Call, 1)).Done
}

func interfaceOf(path godbus.ObjectPath) string {
	switch {
	case strings.HasPrefix(string(path), wire.SessionRoot+"/"):
		return wire.SessionInterface
	case strings.HasPrefix(string(path), wire.ConfigRoot+"/"):
		return wire.ConfigInterface
	}
	return wire.ManagerInterface
}

func (c *conn) property(path godbus.ObjectPath, name string) any {
	c.t.Helper()
	var v godbus.Variant
	c.must(c.call(path, wire.PropertiesInterface+".Get", interfaceOf(path), name), &v)
	return v.Value()
}

func (c *conn) properties(path godbus.ObjectPath) dict {
	c.t.Helper()
	var all dict
	c.must(c.call(path, wire.PropertiesInterface+".GetAll", interfaceOf(path)), &all)
	return all
}

func (c *conn) must(call *godbus.Call, results ...any) {
	c.t.Helper()
	err := call.Err
	if err == nil && len(results) > 0 {
		err = call.Store(results...)
	}
	if err != nil {
		c.t.Fatalf("%s: %v", call.Method, err)
	}
}

// refused says that the call must fail with that error, and its message hold
// the texts.
func (c *conn) refused(call *godbus.Call, name string, texts ...string) {
	c.t.Helper()
	if got := errorName(call.Err); got != name || !contains(call.Err.Error(), texts...) {
		c.t.Errorf("%s %.200v: error %q (%v), want %s with %q", call.Method, call.Args, got, call.Err, name, texts)
	}
}

// errorName is the D-Bus name of an error; empty for none.
func errorName(err error) string {
	if e, ok := errors.AsType[godbus.Error](err); ok {
		return e.Name
	}
	if err != nil {
		return "no D-Bus error: " + err.Error()
	}
	return ""
}

// arrived says what has come to the connection about the objects since it was
// asked last, in order:
//
//	+session, -session, +config, -config   InterfacesAdded, InterfacesRemoved
//	config STATE, config STATE (REASON)    PropertiesChanged with State
//	connected, disconnected: REASON, …     PlatformMessage
//	ConfigCreated, ConfigRemoved, UIEvent
//
// All that the daemon sent before an answer is there when the call returns.
func (c *conn) arrived(objects ...godbus.ObjectPath) []string {
	var list []string
	for {
		select {
		case s, ok := <-c.signals:
			if !ok {
				return list // the connection is closed
			}
			if event := event(s, objects); event != "" {
				list = append(list, event)
			}
		default:
			return list
		}
	}
}

// trace is arrived, for all that the daemon has told of calls that were answered.
// (One connection may be told of an event when another is still to be.)
func (c *conn) trace(objects ...godbus.ObjectPath) []string {
	c.call(wire.RootPath, wire.PeerInterface+".Ping")
	return c.arrived(objects...)
}

// traceTo waits for the event that ends the list.
func (c *conn) traceTo(last string, objects ...godbus.ObjectPath) []string {
	c.t.Helper()
	list := []string{}
	late := time.After(harness.Timeout)
	for {
		select {
		case s, ok := <-c.signals:
			if !ok {
				c.t.Fatalf("the connection was closed, no %q came, but %q", last, list)
			}
			if event := event(s, objects); event != "" {
				list = append(list, event)
				if event == last {
					return list
				}
			}
		case <-late:
			c.t.Fatalf("no %q came, but %q", last, list)
		}
	}
}

// event is the line of a signal; empty for what is about other objects, or of
// no interest. A signal from others than the daemon is told as it is.
func event(s *godbus.Signal, objects []godbus.ObjectPath) string {
	about := func(path any) string {
		p, ok := path.(godbus.ObjectPath)
		if !ok || !slices.Contains(objects, p) {
			return ""
		}
		return strings.ToLower(strings.TrimPrefix(interfaceOf(p), wire.BusName+"."))
	}
	member := s.Name[strings.LastIndexByte(s.Name, '.')+1:]
	sign := map[string]string{"InterfacesAdded": "+", "InterfacesRemoved": "-"}[member]
	switch {
	case len(s.Body) == 0:
	case sign != "" && about(s.Body[0]) != "":
		return sign + about(s.Body[0])
	case member == "PropertiesChanged" && about(s.Path) == "config":
		return stateChange(s.Body)
	case member == "PlatformMessage" && about(s.Path) != "":
		if s.Body[1] == wire.MessageConnected {
			return wire.MessageConnected
		}
		return fmt.Sprintf("%v: %v", s.Body[1], s.Body[2])
	case (member == "ConfigCreated" || member == "ConfigRemoved") && about(s.Body[0]) != "":
		return member
	case member == "UIEvent":
		return fmt.Sprintf("%v %v", s.Body[0], about(s.Body[1]))
	}
	return ""
}

func stateChange(body []any) string {
	changed, _ := body[1].(dict)
	state, ok := changed["State"].Value().(string)
	if !ok {
		return ""
	}
	if reason, _ := changed["FailureReason"].Value().(string); reason != "" {
		return fmt.Sprintf("config %s (%s)", state, reason)
	}
	return "config " + state
}

func requireTrace(t testing.TB, who string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s got\n%q\nwant\n%q", who, got, want)
	}
}
