package driver

import (
	"context"
	"errors"
	"time"
)

// startTimeout is how long a provider may take to register after an agent was
// told to start it. Callers on the bus give up after 25 s.
const startTimeout = 20 * time.Second

// RegisterAgent makes the caller's connection an agent of its user: it will
// be told to start providers. The service cannot start them itself, because a
// session bus lets in nobody but its owner.
func (m *Manager) RegisterAgent(by Caller) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.agents[by.Conn] = by.UID
	m.keep()
}

// await gives the provider of an app, and has it started where it does not
// run. waiting is told when it takes its time.
func (m *Manager) await(ctx context.Context, key providerKey, waiting func()) (*provider, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		m.mu.Lock()
		p, err := m.running(key)
		if err == nil || m.down || !m.start(key) {
			m.mu.Unlock()
			return p, err
		}
		arrival := m.arrivals[key]
		m.mu.Unlock()
		waiting()
		select {
		case <-arrival:
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return nil, err
			}
			return nil, ctx.Err()
		}
	}
}

// start tells the user's agents to start a provider, once for all who wait
// for it. It says whether there is an agent. It must be called with mu held.
func (m *Manager) start(key providerKey) (found bool) {
	_, told := m.arrivals[key]
	for conn, uid := range m.agents {
		if uid != key.uid {
			continue
		}
		found = true
		if !told {
			m.tell(StartProvider{To: conn, App: key.app})
		}
	}
	if found && !told {
		m.arrivals[key] = make(chan struct{})
		time.AfterFunc(startTimeout, func() { m.arrived(key) })
	}
	return found
}

// arrived wakes who waits for a provider, whether it has come or not.
func (m *Manager) arrived(key providerKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wake(key)
}

// wake must be called with mu held.
func (m *Manager) wake(key providerKey) {
	if arrival, ok := m.arrivals[key]; ok {
		delete(m.arrivals, key)
		close(arrival)
	}
}

// AutoConnect connects what the user wants to be connected when the app is
// there: of the app's configs with AutoConnect that were connected before the
// one that was so last, where nothing else is active or about to be by a call.
func (m *Manager) AutoConnect(ctx context.Context, by Caller, app string, req Connect) error {
	id, err := m.autoConnect(by, app)
	if id == "" || err != nil {
		return err
	}
	req.OnlyIfIdle = true
	if _, err = m.Connect(ctx, by, id, req); errors.Is(err, errNotIdle) {
		return nil // somebody was faster
	}
	return err
}

func (m *Manager) autoConnect(by Caller, app string) (id ConfigID, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if app, err = m.ownApp(by, app); err != nil || !m.vacant() {
		return "", err
	}
	latest := uint64(0)
	for _, c := range m.configs {
		if c.Owner == by.UID && c.App == app && c.AutoConnect && c.LastConnected > latest {
			id, latest = c.ID, c.LastConnected
		}
	}
	return id, nil
}
