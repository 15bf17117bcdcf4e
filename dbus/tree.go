package dbus

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	godbus "github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
)

// request is a call together with who calls and which object is meant.
type request struct {
	*call
	*Server
	peer   *peer
	ctx    context.Context
	caller driver.Caller

	// The object: one of these, or none for the manager.
	config      driver.ConfigID
	session     driver.SessionID
	objectOwner uint32 // of the config or session

	quiet    bool // nobody is to be asked
	answered bool
	after    func() // to be done once the reply is on its way
}

// handler does what one method says and gives the body of the reply. The
// arguments have the method's signature.
type handler func(*request) ([]any, error)

// node is what stands at a path.
type node struct {
	iface    string   // the interface of ours; empty for a mere folder
	children []string // names of the nodes below
}

// find looks the object up. What the caller may not see is answered exactly
// as what does not exist, whatever is called on it.
func (r *request) find() (node, error) {
	switch r.path {
	case "/":
		return node{children: []string{"org"}}, nil
	case "/org":
		return node{children: []string{"vpnprovider1"}}, nil
	case wire.RootPath:
		return node{iface: wire.ManagerInterface, children: []string{"config", "session"}}, nil
	case wire.ConfigRoot:
		var n node
		for _, c := range r.manager.Configs(r.caller) {
			n.children = append(n.children, string(c.ID))
		}
		return n, nil
	case wire.SessionRoot:
		var n node
		for _, s := range r.manager.Sessions(r.caller) {
			n.children = append(n.children, strconv.FormatUint(uint64(s.ID), 10))
		}
		return n, nil
	}
	if id, ok := configID(r.path); ok {
		owner, err := r.ownerOfConfig(id)
		r.config, r.objectOwner = id, owner
		return node{iface: wire.ConfigInterface}, err
	}
	if id, ok := sessionID(r.path); ok {
		owner, err := r.ownerOfSession(id)
		r.session, r.objectOwner = id, owner
		return node{iface: wire.SessionInterface}, err
	}
	return node{}, &standardError{wire.ErrUnknownObject, fmt.Sprintf("there is no object %s", r.path)}
}

// ownerOfConfig finds a config that the caller may see. One that is not its own
// is there for who may manage those of others.
func (r *request) ownerOfConfig(id driver.ConfigID) (uint32, error) {
	c, err := r.manager.Config(r.caller, id)
	if err != nil && r.seesOthers() {
		c, err = r.manager.Config(r.caller, id)
	}
	return c.Owner, err
}

// ownerOfSession is ownerOfConfig of a session.
func (r *request) ownerOfSession(id driver.SessionID) (uint32, error) {
	s, err := r.manager.Session(r.caller, id)
	if err != nil && r.seesOthers() {
		s, err = r.manager.Session(r.caller, id)
	}
	return s.Owner, err
}

// configID reads the path of a config. Anything below the folder counts.
func configID(path string) (driver.ConfigID, bool) {
	rest, ok := strings.CutPrefix(path, wire.ConfigRoot+"/")
	return driver.ConfigID(rest), ok
}

// sessionID reads the path of a session; one that is no number is none.
func sessionID(path string) (driver.SessionID, bool) {
	rest, ok := strings.CutPrefix(path, wire.SessionRoot+"/")
	n, err := strconv.ParseUint(rest, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != rest {
		n = 0
	}
	return driver.SessionID(n), ok
}

func configPath(id driver.ConfigID) godbus.ObjectPath {
	if id == "" {
		return wire.NoPath
	}
	return godbus.ObjectPath(wire.ConfigRoot + "/" + string(id))
}

func sessionPath(id driver.SessionID) godbus.ObjectPath {
	if id == 0 {
		return wire.NoPath
	}
	return godbus.ObjectPath(wire.SessionRoot + "/" + strconv.FormatUint(uint64(id), 10))
}

// answer serves one call: object, interface, method, signature, handler.
func (s *Server) answer(r *request) ([]any, error) {
	if r.iface == wire.PeerInterface { // it has nothing to do with objects
		return r.invoke([]string{wire.PeerInterface})
	}
	n, err := r.find()
	if err != nil {
		return nil, err
	}
	return r.invoke(n.interfaces())
}

func (n node) interfaces() []string {
	standard := []string{wire.IntrospectableInterface, wire.PeerInterface}
	switch n.iface {
	case "":
		return standard
	case wire.ManagerInterface:
		standard = append(standard, wire.ObjectManagerInterface)
	}
	return append([]string{n.iface, wire.PropertiesInterface}, standard...)
}

// invoke calls the method of the first of the interfaces that has it; the
// caller may leave the interface out.
func (r *request) invoke(interfaces []string) ([]any, error) {
	if r.iface != "" && !slices.Contains(interfaces, r.iface) {
		return nil, &standardError{wire.ErrUnknownInterface, fmt.Sprintf("%s has no interface %q", r.path, r.iface)}
	}
	for _, name := range interfaces {
		if r.iface != "" && r.iface != name {
			continue
		}
		m, ok := r.ifaces[name].Method(r.member)
		if !ok {
			continue
		}
		if r.signature != m.In() {
			return nil, &standardError{wire.ErrInvalidArgs, fmt.Sprintf("%s takes %q, not %q", m.Name, m.In(), r.signature)}
		}
		if err := r.decode(); err != nil {
			return nil, err
		}
		return r.methods[name+"."+m.Name](r)
	}
	return nil, &standardError{wire.ErrUnknownMethod, fmt.Sprintf("%s has no method %q", r.path, r.member)}
}

// methods is everything that can be called.
func methods() map[string]handler {
	all := map[string]handler{
		wire.PeerInterface + ".Ping":                       func(*request) ([]any, error) { return nil, nil },
		wire.PeerInterface + ".GetMachineId":               machineID,
		wire.IntrospectableInterface + ".Introspect":       introspectNode,
		wire.PropertiesInterface + ".Get":                  readsProperties(getProperty),
		wire.PropertiesInterface + ".GetAll":               readsProperties(getProperties),
		wire.PropertiesInterface + ".Set":                  reads(setProperty),
		wire.ObjectManagerInterface + ".GetManagedObjects": large(reads(managedObjects)),
	}
	for prefix, group := range map[string]map[string]handler{
		wire.ManagerInterface: managerMethods(), wire.ConfigInterface: configMethods(), wire.SessionInterface: sessionMethods(),
	} {
		for name, h := range group {
			all[prefix+"."+name] = h
		}
	}
	return all
}

func machineID(*request) ([]any, error) {
	for _, file := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if text, err := os.ReadFile(file); err == nil {
			return []any{strings.TrimSpace(string(text))}, nil
		}
	}
	return nil, driver.Errorf(driver.KindFailed, "this machine has no id")
}

func introspectNode(r *request) ([]any, error) {
	n, err := r.find()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(strings.TrimSpace(introspect.IntrospectDeclarationString) + "\n<node>\n")
	for _, name := range n.interfaces() {
		b.WriteString(r.ifaces[name].XML)
	}
	for _, child := range n.children {
		fmt.Fprintf(&b, "  <node name=%q/>\n", child)
	}
	b.WriteString("</node>\n")
	return []any{b.String()}, nil
}
