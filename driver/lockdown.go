package driver

import "context"

// A lockdown is in force while any config wants it, whether that one is
// connected or not: nothing leaves the host then but through a tunnel. It
// outlives the removal of its config, or else an app could end it that may
// remove it: such a lockdown is ended by Unlock alone.

// WantsLockdown says that a config, or one that was removed, wants a lockdown.
func (m *Manager) WantsLockdown() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted, _ := m.lockdowns()
	return wanted
}

// lockdowns says whether a lockdown is wanted at all, and whether by a config
// that there is. It must be called with mu held.
func (m *Manager) lockdowns() (wanted, byConfig bool) {
	for _, c := range m.configs {
		byConfig = byConfig || c.Lockdown
	}
	wanted = byConfig
	for _, r := range m.forgotten {
		wanted = wanted || r.Lockdown
	}
	return wanted, byConfig
}

// updateLockdown is UpdateConfig where the lockdown changes. One that begins is
// in force before it is written down, one that ends is written down before.
func (m *Manager) updateLockdown(ctx context.Context, by Caller, id ConfigID, changes ConfigChanges) error {
	if err := m.beginLocking(ctx); err != nil {
		return err
	}
	defer m.endLocking()
	before, err := m.ownInfo(by, id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if !*changes.Lockdown {
		return m.endLockdown(ctx, by, before, changes)
	}
	inForce := m.opts.Network.Locked()
	if err := m.lock(ctx, true); err != nil {
		return err
	}
	if err := m.update(by, id, changes); err != nil {
		if !inForce {
			m.try("end the lockdown again", m.lock(context.WithoutCancel(ctx), false))
		}
		return err
	}
	return nil
}

// endLockdown is updateLockdown where the config shall want none. m.locking is
// held.
func (m *Manager) endLockdown(ctx context.Context, by Caller, before ConfigInfo, changes ConfigChanges) error {
	if err := m.update(by, before.ID, changes); err != nil {
		return err
	}
	if !before.Lockdown || m.WantsLockdown() {
		return nil
	}
	err := m.lock(ctx, false)
	if err != nil {
		back := ConfigChanges{Data: &before.Data, AutoConnect: &before.AutoConnect, Lockdown: &before.Lockdown}
		m.try("restore the config", m.update(by, before.ID, back))
	}
	return err
}

// ownInfo is what a config that the caller may change is now.
func (m *Manager) ownInfo(by Caller, id ConfigID) (ConfigInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, err := m.own(by, id)
	if err != nil {
		return ConfigInfo{}, err
	}
	return c.ConfigInfo, nil
}

// beginLocking waits for the right to begin and end lockdowns, which ctx bounds.
func (m *Manager) beginLocking(ctx context.Context) error { return acquire(ctx, m.locking) }

// endLocking gives the right back, and tells of what was done with it.
func (m *Manager) endLocking() {
	m.mu.Lock()
	m.tellHealth()
	m.mu.Unlock()
	<-m.locking
}

// lock goes to the state. m.locking is held.
func (m *Manager) lock(ctx context.Context, on bool) error {
	if err := m.opts.Network.Lock(ctx, on); err != nil {
		return Errorf(KindFailed, "cannot change the lockdown: %v", err)
	}
	m.log.Info("lockdown", "on", on)
	return nil
}

// try logs that a way back failed.
func (m *Manager) try(what string, err error) {
	if err != nil {
		m.log.Error("cannot "+what, "error", err)
	}
}

// Unlock ends every lockdown, also one whose config is gone, or all that was
// stored. Without all it is refused where a lockdown belongs to another user
// than the caller.
func (m *Manager) Unlock(ctx context.Context, by Caller, all bool) error {
	if err := m.beginLocking(ctx); err != nil {
		return err
	}
	defer m.endLocking()
	if !all && m.lockedByOthers(by) {
		return Errorf(KindNotAuthorized, "a lockdown belongs to another user")
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if err := m.lock(ctx, false); err != nil {
		return err
	}
	if err := m.forgetLockdowns(); err != nil {
		return Errorf(KindFailed, "the lockdown is ended, but would come back with the next start: cannot save a config: %v", err)
	}
	return nil
}

// forgetLockdowns has no config want one any more.
func (m *Manager) forgetLockdowns() (failed error) {
	m.beginStoring()
	defer m.endStoring()
	for _, c := range m.configs {
		wanted := c.record()
		wanted.Lockdown = false
		if !c.Lockdown {
			continue
		}
		if err := m.opts.Store.Save(wanted); err != nil {
			failed = err
			continue
		}
		m.change(c, func(i *ConfigInfo) { i.Lockdown = false })
	}
	for _, r := range m.forgotten {
		if !r.Lockdown {
			continue
		}
		r.Lockdown = false
		if err := m.storeRemoved(r); err != nil {
			failed = err
			continue
		}
		m.keepRemoved(r)
	}
	return failed
}

func (m *Manager) lockedByOthers(by Caller) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.configs {
		if c.Lockdown && !by.sees(c.Owner) {
			return true
		}
	}
	for _, r := range m.forgotten {
		if r.Lockdown && !by.sees(r.Owner) {
			return true
		}
	}
	return false
}

// passLockdown asks where a connection would open a way out that the lockdown
// in force was not made for.
func (m *Manager) passLockdown(ctx context.Context, c *config, req Connect) error {
	m.mu.Lock()
	pass := c.Lockdown || !m.opts.Network.Locked()
	m.mu.Unlock()
	if pass || req.PassLockdown == nil {
		return nil
	}
	return req.PassLockdown(ctx)
}
