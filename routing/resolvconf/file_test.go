package resolvconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

const original = "# from DHCP\nnameserver 192.0.2.53\nsearch lan\noptions edns0 trust-ad\n"

// host is a folder with a resolv.conf and one with the daemon's state.
type host struct {
	t          *testing.T
	etc, state string
	path       string
	log        bytes.Buffer
}

func newHost(t *testing.T) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, etc: filepath.Join(dir, "etc"), state: filepath.Join(dir, "state")}
	for _, d := range []string{h.etc, h.state} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.path = filepath.Join(h.etc, "resolv.conf")
	return h
}

// file is what a new process makes of it.
func (h *host) file() *File {
	return New(h.path, h.state, slog.New(slog.NewTextHandler(&h.log, nil)))
}

func (h *host) write(content string) {
	h.t.Helper()
	if err := os.WriteFile(h.path, []byte(content), 0o640); err != nil {
		h.t.Fatal(err)
	}
}

// snapshot is all that both folders hold.
func (h *host) snapshot() string {
	h.t.Helper()
	var b strings.Builder
	for _, dir := range []string{h.etc, h.state} {
		list, err := os.ReadDir(dir)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, e := range list {
			info, err := e.Info()
			if err != nil {
				h.t.Fatal(err)
			}
			target, _ := os.Readlink(filepath.Join(dir, e.Name()))
			content, _ := os.ReadFile(filepath.Join(dir, e.Name()))
			st, _ := info.Sys().(*syscall.Stat_t)
			fmt.Fprintf(&b, "%s %s %d:%d -> %q %q\n", e.Name(), info.Mode(), st.Uid, st.Gid, target, content)
		}
	}
	return b.String()
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) content() string {
	h.t.Helper()
	b, err := os.ReadFile(h.path)
	h.must(err)
	return string(b)
}

func resolution(servers ...string) routing.Resolution {
	r := routing.Resolution{Link: routing.Link{Name: "vpn0", Index: 7}}
	for _, s := range servers {
		r.DNS.Servers = append(r.DNS.Servers, netip.MustParseAddr(s))
	}
	return r
}

func TestSetAndRevert(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(h *host)
	}{
		{"a file", func(h *host) { h.write(original) }},
		{"a file with permissions of its own", func(h *host) {
			h.write(original)
			h.must(os.Chmod(h.path, 0o600))
			if os.Geteuid() == 0 {
				h.must(os.Chown(h.path, 1234, 5678))
			}
		}},
		{"an empty file", func(h *host) { h.write("") }},
		{"no file", func(*host) {}},
		{"a symbolic link", func(h *host) {
			h.must(os.Mkdir(filepath.Join(h.etc, "run"), 0o755))
			h.must(os.WriteFile(filepath.Join(h.etc, "run", "stub.conf"), []byte(original), 0o644))
			h.must(os.Symlink("./run/../run/stub.conf", h.path))
		}},
		{"a symbolic link to nowhere", func(h *host) { h.must(os.Symlink("/nowhere/at/all", h.path)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			c.prepare(h)
			before := h.snapshot()
			h.must(h.file().Set(t.Context(), resolution("10.8.0.1", "fd00::1")))
			if info, err := os.Lstat(h.path); err != nil || !info.Mode().IsRegular() {
				t.Fatalf("not a file: %v, %v", info, err)
			}
			if got := h.content(); !strings.Contains(got, "\nnameserver 10.8.0.1\nnameserver fd00::1\n") || strings.Contains(got, "192.0.2.53") {
				t.Errorf("content %q", got)
			}
			if left, err := h.file().Leftover(t.Context()); err != nil || !left {
				t.Errorf("leftover %v, %v", left, err)
			}
			h.must(h.file().Set(t.Context(), resolution("10.8.0.9"))) // another process, in place
			h.must(h.file().Revert(t.Context()))
			if diff := cmp.Diff(before, h.snapshot()); diff != "" {
				t.Errorf("(-before +after)\n%s", diff)
			}
			if left, err := h.file().Leftover(t.Context()); err != nil || left {
				t.Errorf("leftover %v, %v", left, err)
			}
			h.must(h.file().Revert(t.Context()))
			if h.log.Len() != 0 {
				t.Errorf("logged %s", h.log.String())
			}
		})
	}
}

func TestContent(t *testing.T) {
	h := newHost(t)
	h.write(original)
	r := resolution("10.8.0.1", "10.8.0.2", "fe80::1%vpn0", "10.8.0.4")
	r.DNS.Search = []string{"example.com", "example.org"}
	r.DNS.Match = []string{"corp.example"}
	h.must(h.file().Set(t.Context(), r))
	want := `# Written by vpnproviderd for the VPN on vpn0. What was here before comes back when
# it disconnects; should the daemon be gone, run: vpnproviderd --cleanup
search example.com example.org
nameserver 10.8.0.1
nameserver 10.8.0.2
nameserver fe80::1%vpn0
nameserver 10.8.0.4
options edns0 trust-ad
`
	if diff := cmp.Diff(want, h.content()); diff != "" {
		t.Error(diff)
	}
	for _, warning := range []string{"no split DNS", "domains=corp.example", "servers=4 asked=3"} {
		if !strings.Contains(h.log.String(), warning) {
			t.Errorf("no warning %q in %s", warning, h.log.String())
		}
	}
}

func TestOriginal(t *testing.T) {
	h := newHost(t)
	h.write(original + "nameserver 2001:db8::53\nnameserver\nnameserver nonsense\n")
	f := h.file()
	check := func() {
		t.Helper()
		servers, domains, err := f.Original()
		h.must(err)
		if got := fmt.Sprint(servers, domains); got != "[192.0.2.53 2001:db8::53] [lan]" {
			t.Error(got)
		}
	}
	check()
	h.must(f.Set(t.Context(), resolution("10.8.0.1")))
	check()
}

// Another program's change is not lost: neither when the tunnel ends, nor when
// its DNS is sent again.
func TestChangedByOthers(t *testing.T) {
	h := newHost(t)
	h.write(original)
	h.must(h.file().Set(t.Context(), resolution("10.8.0.1")))
	const theirs = "nameserver 198.51.100.53\noptions rotate\n"
	h.write(theirs)
	h.must(h.file().Revert(t.Context()))
	if got := h.content(); got != theirs {
		t.Errorf("content %q, want theirs", got)
	}
	if !strings.Contains(h.log.String(), "changed by another program") {
		t.Errorf("logged %q", h.log.String())
	}
	if left, err := h.file().Leftover(t.Context()); err != nil || left {
		t.Errorf("leftover %v, %v", left, err)
	}

	h.must(h.file().Set(t.Context(), resolution("10.8.0.1")))
	h.write(original)
	h.must(h.file().Set(t.Context(), resolution("10.8.0.1")))
	if got := h.content(); !strings.Contains(got, "nameserver 10.8.0.1\noptions edns0 trust-ad\n") {
		t.Errorf("not sent again: %q", got)
	}
	h.must(h.file().Revert(t.Context()))
	if got := h.content(); got != original {
		t.Errorf("content %q, want the later original", got)
	}
}

// Sending the same again writes nothing.
func TestSetAgain(t *testing.T) {
	h := newHost(t)
	h.write(original)
	f := h.file()
	h.must(f.Set(t.Context(), resolution("10.8.0.1")))
	before, err := os.Stat(h.path)
	h.must(err)
	h.must(f.Set(t.Context(), resolution("10.8.0.1")))
	after, err := os.Stat(h.path)
	h.must(err)
	if !os.SameFile(before, after) || before.ModTime() != after.ModTime() {
		t.Error("written again")
	}
}

// A process that is killed at any instant leaves what the next one can undo.
func TestKilledBetweenSteps(t *testing.T) {
	before := entry{Exists: true, Mode: 0o640, UID: os.Geteuid(), GID: os.Getegid(), Content: []byte(original)}
	first, second := compose(resolution("10.8.0.1"), []byte(original)), compose(resolution("10.8.0.2"), []byte(original))
	short := "nameserver ::1\n"
	for _, c := range []struct {
		name    string
		written []string // as the backup says; nil: no backup
		content string
		temp    string
		want    string
	}{
		{"before the backup", nil, original, "", original},
		{"after the backup", []string{first}, original, "", original},
		{"with the new one half made", []string{first}, original, first[:10], original},
		{"after the file", []string{first}, first, "", original},
		{"after the backup of an update", []string{second, first}, first, "", original},
		{"after the file of an update", []string{second, first}, second, "", original},
		{"after the file came back", []string{first}, original, "", original},
		{"while it was written in place", []string{short}, short + original[len(short):], "", original},
		{"while it came back in place", []string{first}, original + first[len(original):], "", original},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.write(original)
			want := h.snapshot()
			h.write(c.content)
			if c.written != nil {
				h.must(backupIn(h.state).save(&record{Path: h.path, Before: before, Written: c.written}))
			}
			if c.temp != "" {
				h.must(os.WriteFile(temporary(h.path), []byte(c.temp), 0o600))
			}
			h.must(h.file().Revert(t.Context()))
			if diff := cmp.Diff(want, h.snapshot()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if h.log.Len() != 0 {
				t.Errorf("logged %s", h.log.String())
			}
			// The same goes on instead.
			h.write(c.content)
			if c.written != nil {
				h.must(backupIn(h.state).save(&record{Path: h.path, Before: before, Written: c.written}))
			}
			h.must(h.file().Set(t.Context(), resolution("10.8.0.3")))
			h.must(h.file().Revert(t.Context()))
			if diff := cmp.Diff(want, h.snapshot()); diff != "" {
				t.Errorf("after going on (-want +got)\n%s", diff)
			}
		})
	}
}

func TestKilledWhileTheBackupWasMade(t *testing.T) {
	h := newHost(t)
	h.write(original)
	want := h.snapshot()
	h.must(os.WriteFile(temporary(backupIn(h.state).path), []byte("{"), 0o600))
	if left, err := h.file().Leftover(t.Context()); err != nil || !left {
		t.Errorf("leftover %v, %v", left, err)
	}
	h.must(h.file().Revert(t.Context()))
	if diff := cmp.Diff(want, h.snapshot()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// privileged runs the test in a mount namespace of its own.
func privileged(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // the thread ends with the test
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err != nil {
		missing(t, "needs the right to make mount namespaces", err)
	}
}

func missing(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

// A file that is mounted, as in containers, is written in place.
func TestBindMount(t *testing.T) {
	privileged(t)
	h := newHost(t)
	h.write(original)
	source := filepath.Join(t.TempDir(), "resolv.conf")
	h.must(os.WriteFile(source, []byte(original), 0o644))
	h.must(unix.Mount(source, h.path, "", unix.MS_BIND, ""))
	defer unix.Unmount(h.path, unix.MNT_DETACH)
	before := h.snapshot()
	h.must(h.file().Set(t.Context(), resolution("10.8.0.1")))
	for _, path := range []string{h.path, source} {
		if b, err := os.ReadFile(path); err != nil || !bytes.Contains(b, []byte("nameserver 10.8.0.1\n")) {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	h.must(h.file().Set(t.Context(), resolution("::1")))
	h.must(h.file().Revert(t.Context()))
	if diff := cmp.Diff(before, h.snapshot()); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
}

// Where it cannot be written, nothing is changed, and the error helps.
func TestReadOnly(t *testing.T) {
	privileged(t)
	h := newHost(t)
	h.write(original)
	h.must(unix.Mount(h.etc, h.etc, "", unix.MS_BIND, ""))
	h.must(unix.Mount("", h.etc, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	defer unix.Unmount(h.etc, unix.MNT_DETACH)
	h.refused(t, unix.EROFS)
}

// refused expects of Set an error that names the file and what to do.
func (h *host) refused(t *testing.T, cause error) {
	t.Helper()
	before := h.snapshot()
	err := h.file().Set(t.Context(), resolution("10.8.0.1"))
	if !errors.Is(err, cause) {
		t.Fatalf("error %v, want %v", err, cause)
	}
	for _, word := range []string{h.path, "--resolver none"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not say %q: %v", word, err)
		}
	}
	if diff := cmp.Diff(before, h.snapshot()); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
}

// unprivileged runs the rest of the test as nobody.
func unprivileged(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	runtime.LockOSThread() // the thread ends with the test
	if _, _, errno := unix.RawSyscall(unix.SYS_SETFSUID, 65534, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { _, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, 0, 0, 0) })
}

func TestUnwritableFolder(t *testing.T) {
	h := newHost(t)
	h.write(original)
	h.must(os.Chmod(h.path, 0o644))
	if os.Geteuid() == 0 {
		h.must(os.Chown(h.state, 65534, 65534))
		for d := filepath.Dir(h.etc); d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
			h.must(os.Chmod(d, 0o755)) // the test's own
		}
	} else {
		h.must(os.Chmod(h.etc, 0o555))
		defer os.Chmod(h.etc, 0o755)
	}
	unprivileged(t)
	h.refused(t, fs.ErrPermission)
}

// With no place for the backup, the file is not touched.
func TestUnwritableState(t *testing.T) {
	h := newHost(t)
	h.write(original)
	h.state = filepath.Join(h.state, "missing")
	err := h.file().Set(t.Context(), resolution("10.8.0.1"))
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), h.state) {
		t.Errorf("error %v", err)
	}
	if got := h.content(); got != original {
		t.Errorf("content %q", got)
	}
}

func TestBackupIsPrivateAndChecked(t *testing.T) {
	h := newHost(t)
	h.write(original)
	h.must(h.file().Set(t.Context(), resolution("10.8.0.1")))
	b := backupIn(h.state)
	info, err := os.Stat(b.path)
	h.must(err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %s", info.Mode())
	}
	other := New(h.path+".other", h.state, slog.New(slog.DiscardHandler))
	for _, err := range []error{other.Revert(t.Context()), other.Set(t.Context(), resolution("10.8.0.1"))} {
		if err == nil || !strings.Contains(err.Error(), "--resolv-conf "+h.path) {
			t.Errorf("the backup of another file: %v", err)
		}
	}
	h.must(os.WriteFile(b.path, []byte("{"), 0o600))
	for _, err := range []error{h.file().Revert(t.Context()), h.file().Set(t.Context(), resolution("10.8.0.1"))} {
		var syntax *json.SyntaxError
		if !errors.As(err, &syntax) || !strings.Contains(err.Error(), b.path) {
			t.Errorf("a damaged backup: %v", err)
		}
	}
}

// What is no file is left alone.
func TestNotAFile(t *testing.T) {
	h := newHost(t)
	h.must(os.Mkdir(h.path, 0o755))
	if err := h.file().Set(t.Context(), resolution("10.8.0.1")); err == nil {
		t.Error("a folder: no error")
	}
	h.must(os.Remove(h.path))
	h.must(unix.Mkfifo(h.path, 0o600))
	if err := h.file().Set(t.Context(), resolution("10.8.0.1")); err == nil {
		t.Error("a pipe: no error")
	}
}

func TestNone(t *testing.T) {
	var r routing.Resolver = None{}
	left, err := r.Leftover(t.Context())
	if errs := []error{r.Set(t.Context(), resolution("10.8.0.1")), r.Revert(t.Context()), err}; slices.ContainsFunc(errs, func(err error) bool { return err != nil }) || left || r.PerLink() {
		t.Errorf("%v, leftover %v", errs, left)
	}
}
