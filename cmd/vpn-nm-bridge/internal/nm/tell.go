package nm

import (
	"fmt"
	"path"

	godbus "github.com/godbus/dbus/v5"
)

// What the user's bridge tells the plugin of a connection: one signal, of
// ours, to the plugin's bus name alone. A signal, because a bus policy cannot
// allow calls to names that are made up while the system runs, and signals
// pass without one.
const (
	TellInterface                   = "org.vpnprovider.NetworkManagerBridge"
	TellMember                      = "State"
	TellPath      godbus.ObjectPath = "/org/vpnprovider/NetworkManagerBridge"
)

// Word is what the plugin is told.
type Word string

// Words.
const (
	Connected Word = "connected"
	Failed    Word = "failed" // the attempt, or what was connected
	Lost      Word = "lost"   // the VPN's app is not there
)

// Tell tells the plugin process of an activation, with a reason for its log.
// It does not say whether it arrived: a plugin that is gone has no use for it.
func (c *Client) Tell(active godbus.ObjectPath, word Word, reason string) error {
	name := ServiceType + ".Connection_" + path.Base(string(active)) // as NetworkManager names it
	return Signal(c.conn, name, TellPath, TellInterface+"."+TellMember, string(word), reason)
}

// Signal sends a signal to one receiver: godbus' own would tell everybody.
func Signal(conn *godbus.Conn, to string, from godbus.ObjectPath, name string, args ...any) error {
	iface, member := split(name)
	msg := &godbus.Message{
		Type: godbus.TypeSignal,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(to),
			godbus.FieldPath:        godbus.MakeVariant(from),
			godbus.FieldInterface:   godbus.MakeVariant(iface),
			godbus.FieldMember:      godbus.MakeVariant(member),
			godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf(args...)),
		},
		Body: args,
	}
	if call := conn.Send(msg, nil); call != nil && call.Err != nil {
		return fmt.Errorf("cannot send %s: %w", member, call.Err)
	}
	return nil
}

func split(name string) (iface, member string) {
	ext := path.Ext(name)
	return name[:len(name)-len(ext)], ext[1:]
}
