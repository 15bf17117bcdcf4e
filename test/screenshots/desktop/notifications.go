package desktop

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const (
	notificationsName = "org.freedesktop.Notifications"
	notificationsPath = "/org/freedesktop/Notifications"
)

// Notifications stands in for the desktop's notification server. Its methods
// may be called from any goroutine.
type Notifications struct {
	conn         *godbus.Conn
	capabilities []string

	mu     sync.Mutex
	last   uint32
	shown  map[uint32]string
	events []string
}

// StartNotifications puts a server on the session bus. It leaves when the test
// ends, or with Close.
func StartNotifications(t testing.TB, bus string, capabilities ...string) *Notifications {
	t.Helper()
	n := &Notifications{conn: dial(t, bus), capabilities: capabilities, shown: make(map[uint32]string)}
	if err := n.conn.Export(server{n}, notificationsPath, notificationsName); err != nil {
		t.Fatal(err)
	}
	own(t, n.conn, notificationsName)
	return n
}

// Close takes the server off the bus.
func (n *Notifications) Close() { _ = n.conn.Close() }

// Events are what was shown ("3: title | text", where a number that was there
// replaces it) and closed ("3: closed"), in order.
func (n *Notifications) Events() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.events)
}

// Await waits until these are the events from the one after the first skip on.
func (n *Notifications) Await(t testing.TB, skip int, want ...string) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, fmt.Sprintf("notifications %q", want), func() error {
		if got := n.Events(); len(got) < skip || !slices.Equal(got[skip:], want) {
			return fmt.Errorf("there were %q", got)
		}
		return nil
	})
}

// server is what programs call.
type server struct{ n *Notifications }

// GetCapabilities says what notifications may have.
func (s server) GetCapabilities() ([]string, *godbus.Error) { return s.n.capabilities, nil }

// Notify shows a notification.
func (s server) Notify(_ string, replaces uint32, _, summary, body string, _ []string, hints map[string]godbus.Variant, _ int32) (uint32, *godbus.Error) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	id := replaces
	if _, ok := s.n.shown[id]; !ok {
		s.n.last++
		id = s.n.last
	}
	text := strings.TrimSpace(summary + " | " + body)
	if hints["transient"].Value() == true {
		text += " (transient)"
	}
	s.n.shown[id] = text
	s.n.events = append(s.n.events, fmt.Sprintf("%d: %s", id, text))
	return id, nil
}

// CloseNotification takes one away.
func (s server) CloseNotification(id uint32) *godbus.Error {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	if _, ok := s.n.shown[id]; !ok {
		return godbus.NewError("org.freedesktop.Notifications.Error.NotFound", nil)
	}
	delete(s.n.shown, id)
	s.n.events = append(s.n.events, fmt.Sprintf("%d: closed", id))
	return nil
}
