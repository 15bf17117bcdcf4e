package driver

// beginStoring takes the locks of the one who changes configs.
func (m *Manager) beginStoring() {
	m.storing <- struct{}{}
	m.mu.Lock()
}

func (m *Manager) endStoring() {
	m.mu.Unlock()
	<-m.storing
}

// alter changes a config, first on the disk and then for others. A user may do
// that without a pause, and the disk takes its time: so mu is not held
// meanwhile, and what else happens to the config is written again. It must be
// called with storing and mu held.
func (m *Manager) alter(c *config, edit func(*Record)) error {
	for again := false; ; again = true {
		r := c.record()
		edit(&r)
		c.writing, c.unsaved = true, false
		m.mu.Unlock()
		err := m.opts.Store.Save(r)
		m.mu.Lock()
		c.writing = false
		switch {
		case err != nil:
			if again || c.unsaved {
				m.save(c)
			}
			return Errorf(KindFailed, "cannot save the config %q: %v", r.Name, err)
		case !c.unsaved:
			m.change(c, func(i *ConfigInfo) { i.take(r) })
			return nil
		}
	}
}

// save keeps what cannot be refused any more; that it failed is logged. It
// must be called with mu held.
func (m *Manager) save(c *config) {
	if c.writing {
		c.unsaved = true
		return
	}
	if err := m.opts.Store.Save(c.record()); err != nil {
		m.log.Error("cannot save a config", "config", c.ID, "error", err)
	}
}
