package dbus

import (
	"context"
	"encoding/json"
	"fmt"
)

// keptPeers is what a process leaves to the next one: who has called it, and
// what they want to be told. A connection has the same name as long as it is on
// the bus; a bus that was restarted gives the names to others.
type keptPeers struct {
	Bus   string // its id
	Peers []keptPeer
}

type keptPeer struct {
	Name      string
	UID       uint32
	Mute      bool `json:",omitempty"`
	Listening bool `json:",omitempty"`
	Provider  bool `json:",omitempty"` // its process is watched
	Ended     bool `json:",omitempty"` // and has ended
}

// resume takes over the peers of an earlier process that are still on the bus,
// and begins to keep ours. Who leaves is watched already.
func (s *Server) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	if err := s.conn.BusObject().CallWithContext(ctx, busName+".GetId", 0).Store(&s.bus); err != nil {
		return fmt.Errorf("cannot ask the bus which it is: %w", err)
	}
	var last keptPeers
	if s.opts.Kept != nil {
		if err := json.Unmarshal(s.opts.Kept, &last); err != nil {
			s.log.Error("who listened to an earlier run is not known", "error", err)
		}
	}
	if last.Bus == s.bus {
		var names []string
		if err := s.conn.BusObject().CallWithContext(ctx, busName+".ListNames", 0).Store(&names); err != nil {
			return fmt.Errorf("cannot ask the bus who is there: %w", err)
		}
		s.present = make(map[string]bool, len(names))
		for _, name := range names {
			s.present[name] = true
		}
	}
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	for _, k := range last.Peers {
		if !s.present[k.Name] {
			continue
		}
		p := s.calls.peer(k.Name) // it may have called meanwhile
		p.uid, p.known = k.UID, true
		p.mute, p.listening, p.ended, p.resumed = k.Mute, k.Listening, k.Ended, k.Provider
	}
	s.calls.changed = s.keep
	s.keep()
	return nil
}

// Leave gives up the name: the bus keeps who calls from then on waiting for the
// next process. Then it has stop end what calls wait for, and returns when those
// that came before are answered. Nothing else is left for the Server but Close.
func (s *Server) Leave(stop func()) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := s.releaseName(ctx); err != nil {
		s.log.Warn("calls are not kept for the next process", "error", err)
	}
	stop()
	s.calls.stop()
}

// Alive says whether a connection that an earlier process knew is still there.
// It is about the time when the Server came; who left later is told to the
// manager.
func (s *Server) Alive(conn string) bool { return s.present[conn] }

// watchResumed watches the processes of the providers that were taken over.
func (s *Server) watchResumed() {
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	for _, p := range s.calls.peers {
		if p.resumed {
			go func() { _ = s.watchProcess(p) }()
		}
	}
}

// keep must be called with the lock of the peers held.
func (s *Server) keep() {
	if s.opts.Keep == nil {
		return
	}
	k := keptPeers{Bus: s.bus}
	for _, p := range s.calls.peers {
		if p.known {
			k.Peers = append(k.Peers, keptPeer{p.name, p.uid, p.mute, p.listening, p.watched || p.resumed, p.ended})
		}
	}
	text, err := json.Marshal(k)
	if err == nil {
		err = s.opts.Keep(text)
	}
	if err != nil {
		s.log.Error("a restart would not know who listens", "error", err)
	}
}
