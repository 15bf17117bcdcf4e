package clienttest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// Service stands in for the daemon: it has the objects, the calls, and the
// order of signals and answers, but no tunnel, no policy and one user. Its
// methods may be called from any goroutine.
type Service struct {
	t    testing.TB
	conn *godbus.Conn

	mu        sync.Mutex
	serial    int // of the last session
	configs   map[godbus.ObjectPath]*config
	sessions  map[godbus.ObjectPath]*session
	providers map[string]*provider
	members   map[string]bool // connections that called us
	faults    map[string]*godbus.Error
	delays    map[string]time.Duration
	protected []uint64 // inodes of protected sockets
	acks      []string
	features  []string

	interactive atomic.Bool // the last call allowed to ask the user
}

type provider struct {
	sender  string
	options map[string]godbus.Variant
}

type config struct {
	app, name, source, state, reason string
	data                             map[string]godbus.Variant
	autoConnect, lockdown            bool
	delivered                        bool // ConfigCreated was sent
	session                          godbus.ObjectPath
}

type session struct {
	path, config godbus.ObjectPath
	state        string
	parameters   map[string]godbus.Variant
	notified     bool
	channel      *os.File // our end
	packets      [][]byte // of SendPacket
}

// Start puts a service on the bus; it ends with the test.
func Start(t testing.TB, address string) *Service {
	t.Helper()
	s := &Service{
		t:         t,
		configs:   make(map[godbus.ObjectPath]*config),
		sessions:  make(map[godbus.ObjectPath]*session),
		providers: make(map[string]*provider),
		faults:    make(map[string]*godbus.Error),
		delays:    make(map[string]time.Duration),
		features:  []string{"packet"},
	}
	s.Restart(address)
	t.Cleanup(func() {
		s.Stop()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, each := range s.sessions {
			if each.channel != nil {
				_ = each.channel.Close()
			}
		}
	})
	return s
}

// Restart puts a stopped service back on the bus. It knows its objects, but no
// longer who called it.
func (s *Service) Restart(address string) {
	s.t.Helper()
	conn, err := godbus.Connect(address, godbus.WithIncomingInterceptor(s.intercept))
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.conn, s.members = conn, make(map[string]bool)
	s.mu.Unlock()
	for _, export := range []error{
		conn.ExportMethodTable(s.managerTable(), wire.RootPath, wire.ManagerInterface),
		conn.ExportMethodTable(map[string]any{"GetManagedObjects": s.managedObjects}, wire.RootPath, wire.ObjectManagerInterface),
		conn.ExportMethodTable(map[string]any{"GetAll": s.getAll}, wire.RootPath, wire.PropertiesInterface),
		conn.ExportSubtreeMethodTable(map[string]any{"GetAll": s.getAll}, wire.ConfigRoot, wire.PropertiesInterface),
		conn.ExportSubtreeMethodTable(map[string]any{"GetAll": s.getAll}, wire.SessionRoot, wire.PropertiesInterface),
		conn.ExportSubtreeMethodTable(s.configTable(), wire.ConfigRoot, wire.ConfigInterface),
		conn.ExportSubtreeMethodTable(s.sessionTable(), wire.SessionRoot, wire.SessionInterface),
	} {
		if export != nil {
			s.t.Fatal(export)
		}
	}
	reply, err := conn.RequestName(wire.BusName, godbus.NameFlagDoNotQueue)
	if err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		s.t.Fatalf("RequestName: %v, %v", reply, err)
	}
}

// Stop takes the service off the bus, as a crash of the daemon does. Sessions
// and channels stay.
func (s *Service) Stop() {
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	_ = conn.Close()
}

// Leave gives up the name, as a daemon does that is restarted and has calls to
// finish. Stop and Restart come after it.
func (s *Service) Leave() {
	s.t.Helper()
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	if _, err := conn.ReleaseName(wire.BusName); err != nil {
		s.t.Fatal(err)
	}
}

// AddForeignConfig makes a config of another user's, as root sees it, and tells
// its path.
func (s *Service) AddForeignConfig(app, name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := godbus.ObjectPath(configPath(os.Getuid()+1, app, name))
	s.putConfig(path, app, name, wire.SourceProvider, nil)
	return string(path)
}

// Fail lets every call of a method ("Manager.CreateConfig") answer with an
// error from now on; an empty name ends that.
func (s *Service) Fail(method, name, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.faults, method)
	if name != "" {
		s.faults[method] = godbus.NewError(name, []any{message})
	}
}

// Delay lets every call of a method wait from now on, as a daemon does that is
// held up.
func (s *Service) Delay(method string, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delays[method] = d
}

// SetFeatures makes the service a daemon with these features, of which "offload"
// is one that it has.
func (s *Service) SetFeatures(features ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.features = features
}

// Name is the unique name of the service's connection.
func (s *Service) Name() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.Names()[0]
}

// Member is the unique name of the connection that registered an app, "" when
// none did.
func (s *Service) Member(app string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.providers[app]; p != nil {
		return p.sender
	}
	return ""
}

// enter locks the service for a call, notes the caller and tells of the fault
// that was ordered.
func (s *Service) enter(sender godbus.Sender, method string) *godbus.Error {
	s.mu.Lock()
	if d := s.delays[method]; d > 0 {
		s.mu.Unlock()
		time.Sleep(d)
		s.mu.Lock()
	}
	s.members[string(sender)] = true
	return s.faults[method]
}

// ConfigPath is where the config of an app and name is.
func ConfigPath(app, name string) string { return configPath(os.Getuid(), app, name) }

func configPath(uid int, app, name string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\x00%s\x00%s", uid, app, name))
	return fmt.Sprintf("%s/%x", wire.ConfigRoot, sum[:16])
}

// AddConfig makes a config as the administrator does: with ConfigCreated, when
// the provider is there.
func (s *Service) AddConfig(app, name string, data map[string]any) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	variants := make(map[string]godbus.Variant)
	for key, value := range data {
		variants[key] = godbus.MakeVariant(value)
	}
	path := s.addConfig(app, name, wire.SourcePlatform, variants)
	if s.providers[app] != nil {
		s.deliver(path)
	}
	return string(path)
}

// deliver tells the provider of a config of the platform, once.
func (s *Service) deliver(path godbus.ObjectPath) {
	c := s.configs[path]
	if !c.delivered {
		c.delivered = true
		s.signal(s.providers[c.app].sender, wire.RootPath, wire.ManagerInterface+".ConfigCreated", path, c.name, c.data)
	}
}

func (s *Service) addConfig(app, name, source string, data map[string]godbus.Variant) godbus.ObjectPath {
	path := godbus.ObjectPath(ConfigPath(app, name))
	s.putConfig(path, app, name, source, data)
	return path
}

func (s *Service) putConfig(path godbus.ObjectPath, app, name, source string, data map[string]godbus.Variant) {
	if data == nil {
		data = map[string]godbus.Variant{}
	}
	s.configs[path] = &config{app: app, name: name, source: source, state: wire.StateIdle, data: data, session: wire.NoPath}
	s.broadcast(wire.RootPath, wire.ObjectManagerInterface+".InterfacesAdded", path, s.interfaces(path))
}

// Message sends a platform message of a session to its provider.
func (s *Service) Message(path, message, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.message(s.sessions[godbus.ObjectPath(path)], message, reason)
}

func (s *Service) message(each *session, message, reason string) {
	if p := s.providers[s.configs[each.config].app]; p != nil {
		s.signal(p.sender, each.path, wire.SessionInterface+".PlatformMessage", each.config, message, reason)
	}
}

// Packet sends a PacketReceived to the session's provider.
func (s *Service) Packet(path string, packet []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	each := s.sessions[godbus.ObjectPath(path)]
	s.signal(s.providers[s.configs[each.config].app].sender, each.path, wire.SessionInterface+".PacketReceived", packet)
}

// UIEvent sends one to the provider of an app; path "" is no config.
func (s *Service) UIEvent(app, event, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if path == "" {
		path = wire.NoPath
	}
	s.signal(s.providers[app].sender, wire.RootPath, wire.ManagerInterface+".UIEvent", event, godbus.ObjectPath(path))
}

// SetState changes the state of a config and its session.
func (s *Service) SetState(path, state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setState(godbus.ObjectPath(path), state)
}

func (s *Service) setState(path godbus.ObjectPath, state string) {
	c := s.configs[path]
	c.state = state
	if each := s.sessions[c.session]; each != nil && state != wire.StateIdle && state != wire.StateFailed {
		each.state = state
		s.changed(each.path, wire.SessionInterface, "State")
	}
	s.changed(path, wire.ConfigInterface, "State", "Session", "FailureReason")
}

// End ends a session with a reason.
func (s *Service) End(path, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(s.sessions[godbus.ObjectPath(path)], reason)
}

func (s *Service) end(each *session, reason string) {
	if each == nil {
		return
	}
	c := s.configs[each.config]
	s.setState(each.config, wire.StateDisconnecting)
	s.message(each, wire.MessageDisconnected, reason)
	if each.channel != nil {
		_ = each.channel.Close()
	}
	c.session, c.reason = wire.NoPath, reason
	state := wire.StateIdle
	if reason != wire.ReasonUser && reason != wire.ReasonRemoved && reason != wire.ReasonReplaced && reason != wire.ReasonShutdown {
		state = wire.StateFailed
	}
	s.setState(each.config, state)
	delete(s.sessions, each.path)
	s.broadcast(wire.RootPath, wire.ObjectManagerInterface+".InterfacesRemoved", each.path, []string{wire.SessionInterface})
}

// Lose forgets a session without a word, as a daemon that crashed did.
func (s *Service) Lose(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	each := s.sessions[godbus.ObjectPath(path)]
	c := s.configs[each.config]
	c.session, c.state, c.reason = wire.NoPath, wire.StateFailed, wire.ReasonInternalPrefix+"restart"
	delete(s.sessions, each.path)
	if each.channel != nil {
		_ = each.channel.Close()
	}
}

// Begin begins a session of a config without a word, as a daemon did that crashed
// before it could say so.
func (s *Service) Begin(config string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	each := &session{path: godbus.ObjectPath(fmt.Sprintf("%s/%d", wire.SessionRoot, s.serial)), config: godbus.ObjectPath(config), state: wire.StateConnecting}
	s.sessions[each.path] = each
	c := s.configs[each.config]
	c.session, c.state, c.reason = each.path, wire.StateConnecting, ""
	return string(each.path)
}

// Channel is the daemon's end of a session's packet channel, nil before it was
// opened. The service closes it.
func (s *Service) Channel(path string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[godbus.ObjectPath(path)].channel
}

// Parameters is what SetParameters passed last.
func (s *Service) Parameters(path string) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]any)
	for key, v := range s.sessions[godbus.ObjectPath(path)].parameters {
		out[key] = v.Value()
	}
	return out
}

// Packets are those that SendPacket passed.
func (s *Service) Packets(path string) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[godbus.ObjectPath(path)].packets
}

// Protected are the inodes of the sockets that were protected.
func (s *Service) Protected() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]uint64(nil), s.protected...)
}

// Interactive says whether the last call allowed polkit to ask the user.
func (s *Service) Interactive() bool { return s.interactive.Load() }

// Acknowledged are the messages that were.
func (s *Service) Acknowledged() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.acks...)
}

// signal sends a unicast signal.
func (s *Service) signal(to string, path godbus.ObjectPath, name string, args ...any) {
	_ = s.conn.Send(Signal(to, path, name, args...), nil)
}

func (s *Service) broadcast(path godbus.ObjectPath, name string, args ...any) {
	for member := range s.members {
		s.signal(member, path, name, args...)
	}
}

func (s *Service) changed(path godbus.ObjectPath, iface string, names ...string) {
	values, all := make(map[string]godbus.Variant), s.interfaces(path)[iface]
	for _, name := range names {
		values[name] = all[name]
	}
	s.broadcast(path, wire.PropertiesInterface+".PropertiesChanged", iface, values, []string{})
}

// Signal is a unicast signal, for who wants to send one by hand.
func Signal(to string, path godbus.ObjectPath, name string, args ...any) *godbus.Message {
	dot := len(name) - 1
	for name[dot] != '.' {
		dot--
	}
	return &godbus.Message{
		Type: godbus.TypeSignal,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldDestination: godbus.MakeVariant(to),
			godbus.FieldPath:        godbus.MakeVariant(path),
			godbus.FieldInterface:   godbus.MakeVariant(name[:dot]),
			godbus.FieldMember:      godbus.MakeVariant(name[dot+1:]),
			godbus.FieldSignature:   godbus.MakeVariant(godbus.SignatureOf(args...)),
		},
		Body: args,
	}
}
