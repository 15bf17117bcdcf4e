package driver

import (
	"context"
	"errors"
	"reflect"
	"slices"

	"github.com/vpnprovider/vpnproviderd/driver/valid"
)

// FileConfig is a config that the administrator of the host wants, in a file.
type FileConfig struct {
	// File is the path of the file, of which only whether it is the same counts.
	File string

	App, Name             string
	Owner                 uint32
	Data                  Data
	AutoConnect, Lockdown bool
}

func (f FileConfig) id() ConfigID { return NewConfigID(f.Owner, f.App, f.Name) }

// SetFiles makes the administrator's configs those of the files. Those of other
// files are removed, unless the file is one of bad: then what it made before
// stays. Configs of the same owner, app and name that others have made make way;
// apart from that, all is told and stored as when a program creates and removes
// configs. Owners cannot change or remove them. It goes as far as it can.
func (m *Manager) SetFiles(ctx context.Context, files []FileConfig, bad []string) error {
	if err := m.beginLocking(ctx); err != nil {
		return err
	}
	defer m.endLocking()
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	var failed error
	if slices.ContainsFunc(files, func(f FileConfig) bool { return f.Lockdown }) && !m.opts.Network.Locked() {
		failed = m.lock(ctx, true)
	}
	wanted := m.WantsLockdown()
	for _, id := range m.withoutFile(files, bad) {
		err := m.remove(Caller{}, id, m.visible, func(*provider) bool { return true })
		if KindOf(err) != KindNotFound {
			failed = errors.Join(failed, err)
		}
	}
	for _, f := range files {
		failed = errors.Join(failed, m.setFile(f))
	}
	if wanted && !m.WantsLockdown() {
		failed = errors.Join(failed, m.lock(ctx, false))
	}
	return failed
}

// withoutFile are the configs whose file is gone, or says something else.
func (m *Manager) withoutFile(files []FileConfig, bad []string) (ids []ConfigID) {
	keep := make(map[ConfigID]bool, len(files))
	for _, f := range files {
		keep[f.id()] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, c := range m.configs {
		if c.File != "" && !keep[id] && !slices.Contains(bad, c.File) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// setFile makes or changes one config.
func (m *Manager) setFile(f FileConfig) error {
	id := f.id()
	for {
		m.beginStoring()
		c := m.configs[id]
		if c == nil || c.File != "" || c.Session == 0 {
			break
		}
		c.cancelWaiting()
		undone := m.active.endLocked(EventStop, ReasonRemoved)
		m.endStoring()
		<-undone
	}
	defer m.endStoring()
	p := m.providers[providerKey{f.Owner, f.App}]
	if c := m.configs[id]; c != nil && c.File == "" {
		m.log.Warn("a config makes way for the administrator's", "CONFIG", id, "APP", f.App, "file", f.File)
		c.cancelWaiting()
		if err := m.forget(c, p, true); err != nil {
			return err
		}
	}
	c := m.configs[id]
	if c == nil {
		c = &config{ConfigInfo: ConfigInfo{ID: id, App: f.App, Name: f.Name, Owner: f.Owner, Source: SourcePlatform, State: Idle}}
	}
	r := c.record()
	f.edit(&r)
	if m.configs[id] == nil {
		return m.add(c, r, p)
	}
	if reflect.DeepEqual(r, c.record()) {
		return nil
	}
	return m.alter(c, f.edit)
}

func (f FileConfig) edit(r *Record) {
	r.File, r.Data, r.AutoConnect, r.Lockdown = f.File, f.Data, f.AutoConnect, f.Lockdown
}

// add makes a config public that is new, as the record says. It must be called
// with storing and mu held.
func (m *Manager) add(c *config, r Record, p *provider) error {
	if err := m.opts.Store.Save(r); err != nil {
		return Errorf(KindFailed, "cannot save the config %q: %v", r.Name, err)
	}
	c.take(r)
	delete(m.forgotten, c.ID)
	m.configs[c.ID] = c
	m.tell(ConfigAdded{Config: c.ConfigInfo})
	if p != nil {
		m.created(c, p.conn)
	}
	return nil
}

// take makes what can change of a config what the record says.
func (i *ConfigInfo) take(r Record) {
	i.File, i.Data, i.AutoConnect, i.Lockdown = r.File, r.Data, r.AutoConnect, r.Lockdown
	i.size = valid.Size(r.Data)
}

// own finds a config that the caller may change and remove. It must be called
// with mu held.
func (m *Manager) own(by Caller, id ConfigID) (*config, error) {
	c, err := m.visible(by, id)
	if err == nil && c.File != "" {
		return nil, Errorf(KindNotAuthorized, "config %q is the administrator's, by the file %s", c.Name, c.File)
	}
	return c, err
}
