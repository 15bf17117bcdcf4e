package harness

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// Polkitd is where Debian and Ubuntu have it; it is in no one's PATH.
	Polkitd = "/usr/lib/polkit-1/polkitd"

	// PolkitPolicy is what a bus with the shipped policy needs for it.
	PolkitPolicy = "/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf"

	polkitName = "org.freedesktop.PolicyKit1"
)

// PolkitFiles are all that a polkitd on the host finds: actions (*.policy) and
// rules (*.rules), by their names.
func (n *Namespace) PolkitFiles(t testing.TB, files map[string]string) {
	t.Helper()
	dirs := map[string]string{".policy": TempDir(t), ".rules": TempDir(t)}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dirs[filepath.Ext(name)], name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	none := TempDir(t)
	err := n.Do(func() error {
		for target, source := range map[string]string{
			"/usr/share/polkit-1/actions": dirs[".policy"], "/usr/share/polkit-1/rules.d": dirs[".rules"], "/etc/polkit-1/rules.d": none,
		} {
			if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
				return &os.PathError{Op: "bind", Path: target, Err: err}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// StartPolkit starts the real polkitd, on a host that has files for it, and waits
// until it is on the bus.
func (b *Bus) StartPolkit(t testing.TB) *Process {
	t.Helper()
	Require(t, Polkitd)
	p := b.ns.Start(t, Command{Argv: []string{Polkitd, "--no-debug"}})
	conn := b.Dial(t)
	Eventually(t, Timeout, "polkitd is on the bus", func() error {
		var there bool
		if err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, polkitName).Store(&there); err != nil {
			return err
		}
		if !there {
			return errors.New(p.Output())
		}
		return nil
	})
	return p
}
