package client

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// ChangeKind is what a Change says.
type ChangeKind string

// Kinds of changes.
const (
	Added   ChangeKind = "added"
	Changed ChangeKind = "changed"
	Removed ChangeKind = "removed" // with what was last known of it

	// Synced says that all that exists has been told: after the first Added
	// ones, and again when a restarted daemon was read.
	Synced ChangeKind = "synced"

	// Stopped says that the daemon went away. What was told stays as it is
	// until it is back: it may just have had nothing to do.
	Stopped ChangeKind = "stopped"
)

// Change is one thing that became different. Config or Session is set with
// Added, Changed and Removed, and holds all that is known now, the session's
// counters aside.
type Change struct {
	Kind    ChangeKind         `json:"change"`
	Config  *ConfigProperties  `json:"config,omitempty"`
	Session *SessionProperties `json:"session,omitempty"`

	// Fields are the D-Bus properties that are new, with Changed; sorted.
	Fields []string `json:"fields,omitempty"`
}

// Watch tells of every config and session that the caller may see, first what
// there is, then what changes, in order and without loss, over restarts of the
// daemon. The channel is closed when ctx is done, the client is closed or the
// bus is lost. The values are the receiver's to keep, but not to change.
func (c *Client) Watch(ctx context.Context) (<-chan Change, error) {
	w := &watcher{
		c:        c,
		out:      make(chan Change),
		configs:  make(map[godbus.ObjectPath]ConfigProperties),
		sessions: make(map[godbus.ObjectPath]SessionProperties),
	}
	ctx, cancel := context.WithCancel(ctx)
	c.mu.Lock()
	if c.lost {
		c.mu.Unlock()
		cancel()
		return nil, ErrClosed
	}
	w.signals = newQueue[*godbus.Signal](&c.wg, ctx.Done())
	c.watchers[w] = struct{}{}
	c.mu.Unlock()

	objects, err := w.read(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.lost {
		err = ErrClosed
	}
	if err != nil {
		delete(c.watchers, w)
		cancel()
		return nil, fmt.Errorf("cannot watch: %w", err)
	}
	c.wg.Go(func() {
		defer cancel()
		w.run(ctx, objects)
	})
	return w.out, nil
}

type objects = map[godbus.ObjectPath]map[string]map[string]godbus.Variant

// watcher holds what it told of, so that it can say what differs.
type watcher struct {
	c        *Client
	signals  *queue[*godbus.Signal]
	out      chan Change
	configs  map[godbus.ObjectPath]ConfigProperties
	sessions map[godbus.ObjectPath]SessionProperties
	synced   godbus.Sequence // signals up to this are in what was read
}

func (w *watcher) run(ctx context.Context, all objects) {
	defer close(w.out)
	defer func() {
		w.c.mu.Lock()
		delete(w.c.watchers, w)
		w.c.mu.Unlock()
	}()
	tell := func(changes ...Change) bool {
		for _, change := range changes {
			select {
			case w.out <- change:
			case <-ctx.Done():
				return false
			case <-w.c.stop:
				return false
			}
		}
		return true
	}
	if !tell(w.compare(all)...) {
		return
	}
	for sig := range w.signals.out {
		if !tell(w.take(ctx, sig)...) {
			return
		}
	}
}

// read reads everything. Signals that come meanwhile are taken afterwards, and
// say again what may have been read: only differences are told.
func (w *watcher) read(ctx context.Context) (objects, error) {
	var all objects
	before := w.c.lastSignal()
	_, err := w.c.call(ctx, wire.RootPath, wire.ObjectManagerInterface+".GetManagedObjects", nil, &all)
	if err == nil {
		w.synced = before
	}
	return all, err
}

// take turns a signal into changes.
func (w *watcher) take(ctx context.Context, sig *godbus.Signal) []Change {
	if sig.Sequence <= w.synced {
		return nil
	}
	switch sig.Name {
	case busName + ".NameOwnerChanged":
		if sig.Body[2] == "" {
			return []Change{{Kind: Stopped}}
		}
		all, err := w.read(ctx)
		if err != nil {
			return nil // gone again: another signal says so
		}
		return w.compare(all)
	case wire.ObjectManagerInterface + ".InterfacesAdded":
		var path godbus.ObjectPath
		var interfaces map[string]map[string]godbus.Variant
		if godbus.Store(sig.Body, &path, &interfaces) == nil {
			return w.compareOne(path, interfaces)
		}
	case wire.ObjectManagerInterface + ".InterfacesRemoved":
		var path godbus.ObjectPath
		var interfaces []string
		if godbus.Store(sig.Body, &path, &interfaces) == nil {
			return w.remove(path)
		}
	case wire.PropertiesInterface + ".PropertiesChanged":
		var iface string
		var changed map[string]godbus.Variant
		var invalidated []string
		if godbus.Store(sig.Body, &iface, &changed, &invalidated) == nil {
			return w.change(sig.Path, iface, changed)
		}
	}
	return nil
}

// add remembers an object.
func (w *watcher) add(path godbus.ObjectPath, interfaces map[string]map[string]godbus.Variant) []Change {
	if from, ok := interfaces[wire.ConfigInterface]; ok {
		p := ConfigProperties{Path: string(path)}
		p.apply(from)
		w.configs[path] = p
		return []Change{{Kind: Added, Config: &p}}
	}
	if from, ok := interfaces[wire.SessionInterface]; ok {
		p := SessionProperties{Path: string(path)}
		p.apply(from)
		p.Statistics = Statistics{} // nothing would keep it up to date
		w.sessions[path] = p
		return []Change{{Kind: Added, Session: &p}}
	}
	return nil
}

func (w *watcher) remove(path godbus.ObjectPath) []Change {
	if p, ok := w.configs[path]; ok {
		delete(w.configs, path)
		return []Change{{Kind: Removed, Config: &p}}
	}
	if p, ok := w.sessions[path]; ok {
		delete(w.sessions, path)
		return []Change{{Kind: Removed, Session: &p}}
	}
	return nil
}

func (w *watcher) change(path godbus.ObjectPath, iface string, changed map[string]godbus.Variant) []Change {
	fields := make([]string, 0, len(changed))
	for name := range changed {
		fields = append(fields, name)
	}
	slices.Sort(fields)
	if p, ok := w.configs[path]; ok && iface == wire.ConfigInterface {
		p.apply(changed)
		if reflect.DeepEqual(p, w.configs[path]) {
			return nil
		}
		w.configs[path] = p
		return []Change{{Kind: Changed, Config: &p, Fields: fields}}
	}
	if p, ok := w.sessions[path]; ok && iface == wire.SessionInterface {
		p.apply(changed)
		if reflect.DeepEqual(p, w.sessions[path]) {
			return nil
		}
		w.sessions[path] = p
		return []Change{{Kind: Changed, Session: &p, Fields: fields}}
	}
	return nil
}

// compare tells how what was read differs from what was told, sessions gone
// first and configs before the sessions that name them.
func (w *watcher) compare(all objects) []Change {
	var out []Change
	for path := range w.sessions {
		if _, ok := all[path][wire.SessionInterface]; !ok {
			out = append(out, w.remove(path)...)
		}
	}
	for path := range w.configs {
		if _, ok := all[path][wire.ConfigInterface]; !ok {
			out = append(out, w.remove(path)...)
		}
	}
	paths := make([]godbus.ObjectPath, 0, len(all))
	for path := range all {
		paths = append(paths, path)
	}
	slices.Sort(paths) // …/config/… comes before …/session/…
	for _, path := range paths {
		out = append(out, w.compareOne(path, all[path])...)
	}
	return append(out, Change{Kind: Synced})
}

// compareOne tells of one object that was read or added.
func (w *watcher) compareOne(path godbus.ObjectPath, interfaces map[string]map[string]godbus.Variant) []Change {
	config, knownConfig := w.configs[path]
	session, knownSession := w.sessions[path]
	changes := w.add(path, interfaces)
	switch {
	case knownConfig && reflect.DeepEqual(config, w.configs[path]):
		return nil
	case knownSession && reflect.DeepEqual(session, w.sessions[path]):
		return nil
	case knownConfig:
		changes[0].Kind, changes[0].Fields = Changed, differing(config, w.configs[path])
	case knownSession:
		changes[0].Kind, changes[0].Fields = Changed, differing(session, w.sessions[path])
	}
	return changes
}

// differing are the names of the fields, which are those of the D-Bus
// properties, that differ.
func differing(before, now any) []string {
	var fields []string
	b, n := reflect.ValueOf(before), reflect.ValueOf(now)
	for i := range b.NumField() {
		if !reflect.DeepEqual(b.Field(i).Interface(), n.Field(i).Interface()) {
			fields = append(fields, b.Type().Field(i).Name)
		}
	}
	slices.Sort(fields)
	return fields
}
