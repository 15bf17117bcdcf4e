package driver

import (
	"cmp"
	"slices"
)

// View is what one caller may see, at one moment.
type View struct {
	m  *Manager
	by Caller
}

// View lets f look. What f sees belongs together, and nothing is told to the
// Observer meanwhile: an answer that f sends off comes before every later
// change. f must not call the Manager.
func (m *Manager) View(by Caller, f func(View)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(View{m, by})
}

// Config with that id.
func (v View) Config(id ConfigID) (ConfigInfo, error) {
	c, err := v.m.visible(v.by, id)
	if err != nil {
		return ConfigInfo{}, err
	}
	return c.ConfigInfo, nil
}

// Configs by app and name.
func (v View) Configs() []ConfigInfo {
	var list []ConfigInfo
	for _, c := range v.m.configs {
		if v.by.sees(c.Owner) {
			list = append(list, c.ConfigInfo)
		}
	}
	slices.SortFunc(list, func(a, b ConfigInfo) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Owner, b.Owner))
	})
	return list
}

// Session with that id.
func (v View) Session(id SessionID) (SessionInfo, error) {
	s, err := v.m.session(v.by, id)
	if err != nil {
		return SessionInfo{}, err
	}
	return s.info(), nil
}

// Sessions are all that the caller may see.
func (v View) Sessions() []SessionInfo {
	if s := v.m.active; s != nil && v.by.sees(s.config.Owner) {
		return []SessionInfo{s.info()}
	}
	return nil
}

// Health is what is wrong.
func (v View) Health() []Problem { return v.m.health }

// Statistics of a session.
func (v View) Statistics(id SessionID) (map[string]uint64, error) {
	s, err := v.m.session(v.by, id)
	if err != nil {
		return nil, err
	}
	return s.tunnel.Statistics(), nil
}

// Config with that id, as the caller may see it.
func (m *Manager) Config(by Caller, id ConfigID) (info ConfigInfo, err error) {
	m.View(by, func(v View) { info, err = v.Config(id) })
	return info, err
}

// Configs that the caller may see, by app and name.
func (m *Manager) Configs(by Caller) (list []ConfigInfo) {
	m.View(by, func(v View) { list = v.Configs() })
	return list
}

// Session with that id, as the caller may see it.
func (m *Manager) Session(by Caller, id SessionID) (info SessionInfo, err error) {
	m.View(by, func(v View) { info, err = v.Session(id) })
	return info, err
}

// Sessions that the caller may see.
func (m *Manager) Sessions(by Caller) (list []SessionInfo) {
	m.View(by, func(v View) { list = v.Sessions() })
	return list
}
