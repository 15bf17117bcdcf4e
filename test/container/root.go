package container

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// release is the Debian that runs in the containers.
const release = "bookworm"

// CacheVariable names the folder of the roots in the environment; by default
// they are in the user's cache. It may be kept from one run in CI to the next,
// and removed at any time.
const CacheVariable = "VPNPROVIDER_TEST_CACHE"

// Users that every container has, with a home folder each and no password.
const (
	Alice = "alice"
	Bob   = "bob"
)

// Packages are in every container: a small server with systemd-resolved in
// charge of names, as Debian sets it up.
func Packages() []string {
	return []string{
		"systemd", "systemd-sysv", "systemd-resolved", "libnss-resolve", "libnss-systemd", "libpam-systemd", "udev", "kmod",
		"dbus", "polkitd", "login", "passwd", "procps", "iproute2", "iputils-ping", "nftables",
	}
}

// prepareRoot returns the folder with the packages installed. It is shared by
// all containers that have them, and must not be changed.
func prepareRoot(t testing.TB, opts Options) string {
	t.Helper()
	packages := slices.DeleteFunc(append(Packages(), opts.Packages...), func(p string) bool { return slices.Contains(opts.Without, p) })
	slices.Sort(packages)
	packages = slices.Compact(packages)
	dir := cacheDir(t)
	// The recipe is part of the name, so that a change of it is a new root.
	root := filepath.Join(dir, fmt.Sprintf("%s-%.8x", release, sha256.Sum256([]byte(strings.Join(recipe("", packages), "\n")))))
	unlock := lock(t, root+".lock")
	defer unlock()
	archive := root + ".tar.zst"
	if _, err := os.Stat(archive); err != nil {
		t.Logf("making a root with %s", strings.Join(packages, " "))
		build(t, archive, packages)
	}
	if _, err := os.Stat(root); err != nil {
		unpack(t, archive, root)
	}
	return root
}

func cacheDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(CacheVariable)
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatalf("cannot find a place for containers: %v", err)
		}
		dir = filepath.Join(cache, "vpnproviderd-test")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// lock waits until no other process works on a root.
func lock(t testing.TB, path string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { _ = f.Close() }
}

// recipe is the command that makes the archive.
func recipe(archive string, packages []string) []string {
	return []string{
		"mmdebstrap", "--quiet", "--variant=minbase", "--include=" + strings.Join(packages, ","),
		`--aptopt=APT::Install-Recommends "false"`,
		"--customize-hook=chroot \"$1\" sh -ec 'useradd -m -s /bin/sh " + Alice + "; useradd -m -s /bin/sh " + Bob + "'",
		release, archive,
	}
}

func build(t testing.TB, archive string, packages []string) {
	t.Helper()
	temp := strings.TrimSuffix(archive, ".tar.zst") + ".new.tar.zst" // mmdebstrap goes by the ending
	argv := recipe(temp, packages)
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		_ = os.Remove(temp)
		t.Fatalf("cannot make a root for containers: %v\n%s", err, out)
	}
	if err := os.Rename(temp, archive); err != nil {
		t.Fatal(err)
	}
}

func unpack(t testing.TB, archive, root string) {
	t.Helper()
	temp := root + ".new"
	if err := os.RemoveAll(temp); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", "--zstd", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", archive, "-C", temp).CombinedOutput()
	if err != nil {
		t.Fatalf("cannot unpack %s: %v\n%s", archive, err, out)
	}
	if err := os.Rename(temp, root); err != nil {
		t.Fatal(err)
	}
}
