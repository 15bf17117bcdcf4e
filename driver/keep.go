package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vpnprovider/vpnproviderd/driver/params"
	"github.com/vpnprovider/vpnproviderd/routing"
)

// keptVersion changes when a text means something else than before. New fields
// alone do not change it: the daemon may be upgraded, and downgraded, under a
// session.
const keptVersion = 1

// kept is what a process leaves to the next one, besides what is stored. A
// session is in it for as long as it is not ending: one that is ending is not
// gone on with.
type kept struct {
	Version   int
	Providers []keptProvider      `json:",omitempty"`
	Agents    map[string]uint32   `json:",omitempty"` // connection to uid
	Ends      map[ConfigID]ending `json:",omitempty"`
	Session   *keptSession        `json:",omitempty"`
}

type keptProvider struct {
	UID  uint32
	App  string
	Conn string
	ProviderOptions
}

// ending is what became of a config's last session.
type ending struct {
	Failed bool
	Reason string
}

type keptSession struct {
	ID         SessionID
	Config     ConfigID
	Conn       string
	Opener     string // the connection that connected it
	Signals    bool
	Link       routing.Link
	State      State
	Notified   bool
	Down       bool
	Channel    bool               // the client has, or had, one
	Since      uint64             // microseconds since the epoch
	Deadline   time.Time          // of the timer; zero: it does not run
	Parameters *params.Parameters // nil before the first
	Uplink     Uplink
}

// keep has the next process know what is now. It must be called with mu held,
// after every change of what is kept and before anybody learns of that.
func (m *Manager) keep() {
	if m.opts.Keep == nil {
		return
	}
	text, err := json.Marshal(m.kept())
	if err == nil {
		err = m.opts.Keep(text)
	}
	if err != nil {
		m.log.Error("a restart would not go on from here", "error", err)
	}
}

// kept must be called with mu held.
func (m *Manager) kept() kept {
	k := kept{Version: keptVersion, Agents: m.agents, Ends: make(map[ConfigID]ending)}
	for _, p := range m.providers {
		k.Providers = append(k.Providers, keptProvider{p.uid, p.app, p.conn, p.ProviderOptions})
	}
	for id, c := range m.configs {
		if c.Session == 0 && (c.State == Failed || c.FailureReason != "") {
			k.Ends[id] = ending{c.State == Failed, c.FailureReason}
		}
	}
	switch s := m.active; {
	case s == nil:
	case s.state == Disconnecting:
		k.Ends[s.config.ID] = ending{s.final == Failed, s.reason}
	case s.state.HasSession():
		k.Session = s.kept()
	}
	return k
}

// kept must be called with Manager.mu held.
func (s *session) kept() *keptSession {
	k := &keptSession{
		ID: s.id, Config: s.config.ID, Conn: s.conn, Opener: s.opener, Signals: s.signals, Link: s.link, State: s.state,
		Notified: s.notified, Down: s.down, Channel: s.opened, Since: s.since, Deadline: s.deadline.Round(0), Uplink: s.m.uplink,
	}
	if s.set {
		k.Parameters = &s.params
	}
	return k
}

// decodeKept reads the text of an earlier process, or of another version. What
// it gives is well-formed, whatever the text is. No text is the zero kept.
func decodeKept(text []byte) (kept, error) {
	k := kept{Version: keptVersion}
	if text == nil {
		return k, nil
	}
	if err := json.Unmarshal(text, &k); err != nil {
		return kept{}, err
	}
	if k.Version != keptVersion {
		return kept{}, fmt.Errorf("version %d is not %d", k.Version, keptVersion)
	}
	return k, k.check()
}

func (k kept) check() error {
	for _, p := range k.Providers {
		if err := errors.Join(checkApp(p.App), checkText("displayName", p.DisplayName), checkText("icon", p.Icon), checkText("connection", p.Conn)); err != nil {
			return err
		}
	}
	for conn := range k.Agents {
		if err := checkText("connection", conn); err != nil {
			return err
		}
	}
	for _, e := range k.Ends {
		if strings.Contains(e.Reason, "\x00") {
			return errors.New("a reason has a NUL")
		}
	}
	if k.Session == nil {
		return nil
	}
	return k.Session.check()
}

// check also gives the parameters the form that they have everywhere else.
func (k *keptSession) check() error {
	if k.ID == 0 || k.Conn == "" || k.Link.Index <= 0 || k.Link.Slot < 0 || k.Link.Slot >= Slots || checkText("interface", k.Link.Name) != nil {
		return fmt.Errorf("session %d is of no use", k.ID)
	}
	if k.Parameters != nil {
		p, _, err := params.Parse(k.Parameters.Dict())
		if err != nil {
			return fmt.Errorf("the parameters are damaged: %w", err)
		}
		k.Parameters = &p
	}
	switch k.State {
	case Connecting:
		return nil
	case Configured, Connected, Reconnecting:
		if k.Parameters == nil {
			return fmt.Errorf("session %d is %s without parameters", k.ID, k.State)
		}
		return nil
	case Idle, Disconnecting, Failed:
	}
	return fmt.Errorf("session %d is %q", k.ID, k.State)
}
