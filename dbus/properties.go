package dbus

import (
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
)

type properties map[string]godbus.Variant

// reads makes a handler of one that gives what is there at one moment. It is
// answered in that moment: were a change told before the answer, the caller
// would take the answer for the newer one.
func reads(look func(*request, driver.View) ([]any, error)) handler {
	return func(r *request) (_ []any, err error) {
		r.manager.View(r.caller, func(v driver.View) {
			var body []any
			if body, err = look(r, v); err == nil {
				r.reply(r.call, body)
				r.answered = true
			}
		})
		return nil, err
	}
}

// properties of the object, as this caller may see them.
func (r *request) properties(v driver.View) (string, properties, error) {
	switch {
	case r.config != "":
		c, err := v.Config(r.config)
		return wire.ConfigInterface, configProperties(c), err
	case r.session != 0:
		all, err := allSessionProperties(v, r.session)
		return wire.SessionInterface, all, err
	}
	return wire.ManagerInterface, r.managerProperties(v.Sessions(), v.Health()), nil
}

func allSessionProperties(v driver.View, id driver.SessionID) (properties, error) {
	info, err := v.Session(id)
	if err != nil {
		return nil, err
	}
	statistics, err := v.Statistics(id)
	all := sessionProperties(info)
	all["Statistics"] = godbus.MakeVariant(statistics)
	return all, err
}

func (s *Server) managerProperties(sessions []driver.SessionInfo, health []driver.Problem) properties {
	paths := make([]godbus.ObjectPath, 0, len(sessions))
	for _, info := range sessions {
		paths = append(paths, sessionPath(info.ID))
	}
	return properties{
		"Version":  godbus.MakeVariant(s.opts.Version),
		"Features": godbus.MakeVariant(features()),
		"Sessions": godbus.MakeVariant(paths),
		"Health":   healthProperty(health),
	}
}

type healthEntry struct{ Code, Severity, Text string }

func healthProperty(problems []driver.Problem) godbus.Variant {
	list := make([]healthEntry, 0, len(problems))
	for _, p := range problems {
		list = append(list, healthEntry(p))
	}
	return godbus.MakeVariant(list)
}

// features are the parts of the contract that this version has, beyond what
// every version has.
func features() []string {
	return []string{
		"packet", "offload", "attach", "protect-socket", "packet-token", "lockdown", "consent", "uplink", "sleep", "activation", "platform-configs", "ui-events", "explain", "capture",
	}
}

func configProperties(c driver.ConfigInfo) properties {
	return properties{
		"App":           godbus.MakeVariant(c.App),
		"Name":          godbus.MakeVariant(c.Name),
		"Owner":         godbus.MakeVariant(c.Owner),
		"Source":        godbus.MakeVariant(c.Source),
		"State":         godbus.MakeVariant(string(c.State)),
		"Session":       godbus.MakeVariant(sessionPath(c.Session)),
		"Data":          godbus.MakeVariant(toDict(c.Data)),
		"AutoConnect":   godbus.MakeVariant(c.AutoConnect),
		"Lockdown":      godbus.MakeVariant(c.Lockdown),
		"LastConnected": godbus.MakeVariant(c.LastConnected),
		"FailureReason": godbus.MakeVariant(c.FailureReason),
	}
}

// sessionProperties are all but Statistics, which no signal carries.
func sessionProperties(s driver.SessionInfo) properties {
	p := s.Parameters
	return properties{
		"Config":         godbus.MakeVariant(configPath(s.Config)),
		"State":          godbus.MakeVariant(string(s.State)),
		"Interface":      godbus.MakeVariant(s.Link.Name),
		"InterfaceIndex": godbus.MakeVariant(int32(s.Link.Index)),
		"Addresses":      godbus.MakeVariant(texts(p.Addresses)),
		"MTU":            godbus.MakeVariant(p.MTU),
		"InclusionList":  godbus.MakeVariant(texts(p.Inclusion)),
		"ExclusionList":  godbus.MakeVariant(texts(p.Exclusion)),
		"DNSServers":     godbus.MakeVariant(texts(p.DNSServers)),
		"DomainSearch":   godbus.MakeVariant(append([]string{}, p.DomainSearch...)),
		"MatchDomains":   godbus.MakeVariant(append([]string{}, p.MatchDomains...)),
		"Reconnect":      godbus.MakeVariant(p.Reconnect),
		"ConnectedSince": godbus.MakeVariant(s.ConnectedSince),
		"Uplink":         godbus.MakeVariant(uplinkProperty(s.Uplink)),
		"FailureReason":  godbus.MakeVariant(s.FailureReason),
	}
}

// uplinkProperty is empty where there is no uplink.
func uplinkProperty(u driver.Uplink) dict {
	if !u.Up() {
		return dict{}
	}
	family, gateway := "ipv4", ""
	if u.IPv6 {
		family = "ipv6"
	}
	if u.Gateway.IsValid() {
		gateway = u.Gateway.String()
	}
	return dict{
		"interface":  godbus.MakeVariant(u.Interface),
		"index":      godbus.MakeVariant(int32(u.Index)),
		"gateway":    godbus.MakeVariant(gateway),
		"family":     godbus.MakeVariant(family),
		"dnsServers": godbus.MakeVariant(texts(u.Nameservers)),
		"domains":    godbus.MakeVariant(sendable(u.Domains)),
	}
}

// sendable are the texts that a message can have: files may hold anything.
func sendable(list []string) []string {
	out := []string{}
	for _, text := range list {
		if utf8.ValidString(text) && !strings.ContainsRune(text, 0) {
			out = append(out, text)
		}
	}
	return out
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return out
}

// changed are the properties that after has and before had otherwise.
func changed(before, after properties) properties {
	diff := make(properties)
	for name, v := range after {
		if !reflect.DeepEqual(before[name], v) {
			diff[name] = v
		}
	}
	return diff
}

func (r *request) propertyInterface(v driver.View, want string) (properties, error) {
	name, all, err := r.properties(v)
	switch {
	case err != nil:
		return nil, err
	case want == "" || want == name:
		return all, nil
	case r.ifaces[want].XML != "" && name != want && isStandard(want):
		return properties{}, nil
	}
	return nil, &standardError{wire.ErrUnknownInterface, fmt.Sprintf("%s has no interface %q", r.path, want)}
}

func isStandard(name string) bool {
	switch name {
	case wire.PeerInterface, wire.IntrospectableInterface, wire.PropertiesInterface, wire.ObjectManagerInterface:
		return true
	}
	return false
}

func getProperty(r *request, v driver.View) ([]any, error) {
	all, err := r.propertyInterface(v, r.text(0))
	if err != nil {
		return nil, err
	}
	value, ok := all[r.text(1)]
	if !ok {
		return nil, unknownProperty(r, r.text(1))
	}
	return []any{value}, nil
}

func getProperties(r *request, v driver.View) ([]any, error) {
	all, err := r.propertyInterface(v, r.text(0))
	return []any{all}, err
}

// setProperty: everything is changed by methods.
func setProperty(r *request, v driver.View) ([]any, error) {
	all, err := r.propertyInterface(v, r.text(0))
	if err != nil {
		return nil, err
	}
	if _, ok := all[r.text(1)]; !ok {
		return nil, unknownProperty(r, r.text(1))
	}
	return nil, &standardError{wire.ErrPropertyReadOnly, fmt.Sprintf("property %q is read-only", r.text(1))}
}

func unknownProperty(r *request, name string) error {
	return &standardError{wire.ErrUnknownProperty, fmt.Sprintf("%s has no property %q", r.path, name)}
}

// largeAnswers is how many answers that can be megabytes are made at a time.
const largeAnswers = 2

// large makes a handler of one whose answer can be megabytes: it waits for its
// turn, and gives it on when the bus has the answer.
func large(h handler) handler {
	return func(r *request) ([]any, error) {
		select {
		case r.large <- struct{}{}:
		case <-r.peer.ctx.Done():
			return nil, errClosing
		}
		defer r.out.then(func() { <-r.large })
		return h(r)
	}
}

// readsProperties is reads for those of an object; a session's lists of blocks
// can be long.
func readsProperties(look func(*request, driver.View) ([]any, error)) handler {
	read := reads(look)
	readLarge := large(read)
	return func(r *request) ([]any, error) {
		if r.session != 0 {
			return readLarge(r)
		}
		return read(r)
	}
}

func managedObjects(r *request, v driver.View) ([]any, error) {
	objects := make(map[godbus.ObjectPath]map[string]properties)
	for _, c := range v.Configs() {
		objects[configPath(c.ID)] = map[string]properties{wire.ConfigInterface: configProperties(c)}
	}
	for _, info := range v.Sessions() {
		all, err := allSessionProperties(v, info.ID)
		if err != nil {
			return nil, err
		}
		objects[sessionPath(info.ID)] = map[string]properties{wire.SessionInterface: all}
	}
	return []any{objects}, nil
}
