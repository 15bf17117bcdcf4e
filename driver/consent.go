package driver

import (
	"context"
	"maps"
	"slices"
)

// consentsPerUser limits how many apps a user can have agreed to. A person
// answers for each, unless polkit's rules do.
const consentsPerUser = 256

// loadConsents reads which apps may connect without asking again.
func (m *Manager) loadConsents() error {
	stored, err := m.opts.Consents.LoadConsents()
	if err != nil {
		return err
	}
	for uid, apps := range stored {
		for _, app := range apps {
			m.consents[providerKey{uid, app}] = struct{}{}
		}
	}
	return nil
}

// agree asks, before the first connect of an app, whether the app may carry
// the host's traffic, and keeps a yes for good.
func (m *Manager) agree(ctx context.Context, c *config, req Connect) error {
	key := providerKey{c.Owner, c.App}
	m.mu.Lock()
	_, given := m.consents[key]
	m.mu.Unlock()
	if given || req.Trust == nil {
		return nil
	}
	if err := req.Trust(ctx, c.App); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// Forgotten while the question was open: the yes was to what is gone.
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if m.configs[c.ID] != c {
		return notFound("config", string(c.ID))
	}
	apps := m.consentsOf(c.Owner)
	if slices.Contains(apps, c.App) {
		return nil
	}
	if len(apps) >= consentsPerUser {
		return Errorf(KindLimitExceeded, "uid %d agreed to %d apps, no more are kept: forget one", c.Owner, len(apps))
	}
	if err := m.opts.Consents.SaveConsents(c.Owner, append(apps, c.App)); err != nil {
		return Errorf(KindFailed, "cannot save the consent to app %q: %v", c.App, err)
	}
	m.consents[key] = struct{}{}
	m.log.Info("the user agreed that an app connects", "APP", c.App, "uid", c.Owner)
	return nil
}

// revoke forgets the consent to an app, and says whether there was one. In
// memory it is forgotten also where the store fails. It must be called with mu
// held.
func (m *Manager) revoke(key providerKey) (found bool, err error) {
	if _, found = m.consents[key]; !found {
		return false, nil
	}
	delete(m.consents, key)
	if err := m.opts.Consents.SaveConsents(key.uid, m.consentsOf(key.uid)); err != nil {
		return true, Errorf(KindFailed, "cannot forget the consent to app %q: %v", key.app, err)
	}
	return true, nil
}

// consentsOf must be called with mu held.
func (m *Manager) consentsOf(uid uint32) (apps []string) {
	for key := range maps.Keys(m.consents) {
		if key.uid == uid {
			apps = append(apps, key.app)
		}
	}
	slices.Sort(apps)
	return apps
}
