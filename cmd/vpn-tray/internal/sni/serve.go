package sni

import (
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
)

// method answers a call with these arguments.
type method func(args []any) ([]any, error)

var errArguments = errors.New("the arguments are of other types")

// receive answers the calls of panels where godbus reads them, one after the
// other, and leaves nothing to answer for godbus: that does so from a goroutine
// each, and GTK's panels, which ask for several things at once, leave a submenu
// empty when they hear of its lines before they hear of itself.
func (i *Item) receive(msg *godbus.Message) {
	if msg.Type != godbus.TypeMethodCall {
		return
	}
	path, _ := msg.Headers[godbus.FieldPath].Value().(godbus.ObjectPath)
	iface, _ := msg.Headers[godbus.FieldInterface].Value().(string)
	member, _ := msg.Headers[godbus.FieldMember].Value().(string)
	call := i.method(path, iface, member)
	if call == nil {
		return // godbus says that there is none
	}
	silent := msg.Flags&godbus.FlagNoReplyExpected != 0
	msg.Flags |= godbus.FlagNoReplyExpected
	out, err := call(msg.Body)
	if silent {
		return
	}
	reply := &godbus.Message{Type: godbus.TypeMethodReply, Body: out, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: msg.Headers[godbus.FieldSender],
		godbus.FieldReplySerial: godbus.MakeVariant(msg.Serial()),
	}}
	if err != nil {
		reply.Type, reply.Body = godbus.TypeError, []any{err.Error()}
		reply.Headers[godbus.FieldErrorName] = godbus.MakeVariant(busName + ".Error.InvalidArgs")
	}
	if len(reply.Body) > 0 {
		reply.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(reply.Body...))
	}
	i.bus.Send(reply, nil)
}

// method is nil where there is none of that name. Without Activate, a click
// opens the menu.
func (i *Item) method(path godbus.ObjectPath, iface, member string) method {
	switch {
	case path == itemPath && iface == itemName && member == "Scroll":
		return func([]any) ([]any, error) { return nil, nil }
	case path == menuPath && iface == menuName:
		return i.menuMethod(member)
	case (path == itemPath || path == menuPath) && iface == properties && member == "GetAll":
		return func(args []any) ([]any, error) {
			var of string
			err := store(args, &of)
			return []any{i.properties(of)}, err
		}
	case (path == itemPath || path == menuPath) && iface == properties && member == "Get":
		return func(args []any) ([]any, error) {
			var of, name string
			if err := store(args, &of, &name); err != nil {
				return nil, err
			}
			value, ok := i.properties(of)[name]
			if !ok {
				return nil, fmt.Errorf("there is no property %q", name)
			}
			return []any{value}, nil
		}
	default:
		return nil
	}
}

// store reads the arguments of a call.
func store(args []any, to ...any) error {
	if godbus.Store(args, to...) != nil {
		return errArguments
	}
	return nil
}

// event is one of EventGroup.
type event struct {
	ID        int32
	What      string
	Data      godbus.Variant
	Timestamp uint32
}

func (i *Item) menuMethod(member string) method {
	switch member {
	case "GetLayout":
		return i.getLayout
	case "GetGroupProperties":
		return i.getGroup
	case "GetProperty":
		return i.getProperty
	case "Event":
		return func(args []any) ([]any, error) {
			var e event
			if err := store(args, &e.ID, &e.What, &e.Data, &e.Timestamp); err != nil {
				return nil, err
			}
			return nil, i.happened(e.ID, e.What)
		}
	case "EventGroup":
		return func(args []any) ([]any, error) {
			var events []event
			err := store(args, &events)
			unknown := []int32{}
			for _, e := range events {
				if i.happened(e.ID, e.What) != nil {
					unknown = append(unknown, e.ID)
				}
			}
			return []any{unknown}, err
		}
	case "AboutToShow":
		return func(args []any) ([]any, error) {
			var id int32
			if err := store(args, &id); err != nil {
				return nil, err
			}
			return []any{false}, i.happened(id, opened)
		}
	case "AboutToShowGroup":
		return func(args []any) ([]any, error) {
			var ids []int32
			err := store(args, &ids)
			for _, id := range ids {
				_ = i.happened(id, opened)
			}
			return []any{[]int32{}, []int32{}}, err
		}
	default:
		return nil
	}
}

func (i *Item) getLayout(args []any) ([]any, error) {
	var parent, depth int32
	var names []string
	if err := store(args, &parent, &depth, &names); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := i.menu.lines[parent]; !ok {
		return nil, noLine(parent)
	}
	return []any{i.menu.revision, i.menu.layout(parent, depth)}, nil
}

func (i *Item) getGroup(args []any) ([]any, error) {
	var ids []int32
	var names []string
	if err := store(args, &ids, &names); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return []any{i.menu.group(ids)}, nil
}

func (i *Item) getProperty(args []any) ([]any, error) {
	var id int32
	var name string
	if err := store(args, &id, &name); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	value, ok := i.menu.lines[id].properties()[name]
	if !ok {
		return nil, noLine(id)
	}
	return []any{value}, nil
}

const opened = "opened"

// happened is an event of a line. What follows from it is done elsewhere: the
// next call is waiting.
func (i *Item) happened(id int32, what string) error {
	i.mu.Lock()
	l, ok := i.menu.find(id)
	i.mu.Unlock()
	switch {
	case !ok:
		return noLine(id)
	case what == opened && id == 0:
		go i.opened()
	case what == "clicked" && l.Click != nil && !l.Disabled:
		go l.Click()
	}
	return nil
}

func noLine(id int32) error { return fmt.Errorf("there is no line %d", id) }
