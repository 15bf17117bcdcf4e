// Package systemd tests the files beside it with systemd's own tools, which
// need no running systemd.
package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// needProgram skips without it, and fails in continuous integration.
func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("needs %s", name)
	}
	t.Skipf("needs %s", name)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	needProgram(t, name)
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v", name, args, err)
	}
	return string(out)
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, mode); err != nil {
		t.Fatal(err)
	}
}

// installed is a root folder in which our files are where packages put them.
func installed(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, pattern := range []string{"*.service", "*.socket"} {
		units, err := filepath.Glob(pattern)
		if err != nil || len(units) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		for _, unit := range units {
			copyFile(t, unit, filepath.Join(root, "usr/lib/systemd/system", unit), 0o644)
		}
	}
	copyFile(t, "vpnprovider.sysusers.conf", filepath.Join(root, "usr/lib/sysusers.d/vpnprovider.conf"), 0o644)
	copyFile(t, "vpnprovider.tmpfiles.conf", filepath.Join(root, "usr/lib/tmpfiles.d/vpnprovider.conf"), 0o644)
	copyFile(t, "/bin/sh", filepath.Join(root, "bin/sh"), 0o755)
	copyFile(t, "/bin/sh", filepath.Join(root, "usr/sbin/vpnproviderd"), 0o755) // any program
	// What ours and every unit depend on.
	for _, unit := range []string{"basic", "sysinit", "sockets", "shutdown", "multi-user"} {
		copyFile(t, "/usr/lib/systemd/system/"+unit+".target", filepath.Join(root, "usr/lib/systemd/system", unit+".target"), 0o644)
	}
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, "/usr/lib/systemd/system/dbus.socket", filepath.Join(root, "usr/lib/systemd/system/dbus.socket"), 0o644)
	return root
}

func services(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("*.service")
	if err != nil || len(names) == 0 {
		t.Fatalf("no services: %v", err)
	}
	return names
}

// TestVerify: systemd understands every line.
func TestVerify(t *testing.T) {
	units := append(services(t), "vpnproviderd.socket")
	if out := run(t, "systemd-analyze", append([]string{"verify", "--man=no", "--root=" + installed(t)}, units...)...); out != "" {
		t.Error(out)
	}
}

// TestExposure holds what systemd thinks of the sandbox, 0 (nothing exposed)
// to 10.
func TestExposure(t *testing.T) {
	for _, unit := range services(t) {
		out := run(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", unit)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		t.Log(lines[len(lines)-1])
	}
}

// settings are the lines of a unit's section, comments left out.
func settings(t *testing.T, unit, section string) []string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	in := ""
	for line := range strings.Lines(string(text)) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "["):
			in = line
		case in == "["+section+"]" && line != "" && !strings.HasPrefix(line, "#"):
			out = append(out, line)
		}
	}
	return out
}

// TestSameSandbox: what cleans up has the rights of what it cleans up after,
// not one more or less.
func TestSameSandbox(t *testing.T) {
	own := []string{
		"Type", "NotifyAccess", "BusName", "ExecStart", "ExecReload", "ExecStopPost", "RestartKillSignal", "SuccessExitStatus", "RestartForceExitStatus",
		"Restart", "RestartSec", "TimeoutStartSec", "TimeoutStopSec", "WatchdogSec", "FileDescriptorStoreMax", "ConfigurationDirectory",
		"MemoryMax", "TasksMax", "LimitNOFILE", "LimitCORE",
	}
	sandbox := func(unit string) []string {
		lines := slices.DeleteFunc(settings(t, unit, "Service"), func(line string) bool {
			key, _, _ := strings.Cut(line, "=")
			return slices.Contains(own, key)
		})
		slices.Sort(lines)
		return lines
	}
	daemon, cleanup := sandbox("vpnproviderd.service"), sandbox("vpnproviderd-cleanup.service")
	if !slices.Equal(daemon, cleanup) {
		t.Errorf("vpnproviderd.service:\n%s\nvpnproviderd-cleanup.service:\n%s", strings.Join(daemon, "\n"), strings.Join(cleanup, "\n"))
	}
}

// TestUserAndFolders: what the unit names is what sysusers and tmpfiles make.
func TestUserAndFolders(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	root := installed(t)
	run(t, "systemd-sysusers", "--root="+root, "vpnprovider.conf")
	run(t, "systemd-tmpfiles", "--root="+root, "--create", "vpnprovider.conf")
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil || !strings.Contains(string(passwd), "\nvpnprovider:") && !strings.HasPrefix(string(passwd), "vpnprovider:") {
		t.Errorf("no user: %q %v", passwd, err)
	}
	for path, want := range map[string]os.FileMode{
		"run/vpnprovider": 0o755, "var/lib/vpnprovider": 0o700, "etc/vpnprovider": 0o755, "etc/vpnprovider/configs.d": 0o750,
	} {
		info, err := os.Stat(filepath.Join(root, path))
		if err != nil {
			t.Error(err)
		} else if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has the mode %o, want %o", path, got, want)
		}
	}
}

// TestNeedsNoMore is what the packages of this module rely on, and no more:
// one capability, one device, no Internet socket.
func TestNeedsNoMore(t *testing.T) {
	got := settings(t, "vpnproviderd.service", "Service")
	for _, want := range []string{
		"User=vpnprovider", "CapabilityBoundingSet=CAP_NET_ADMIN", "AmbientCapabilities=CAP_NET_ADMIN", "NoNewPrivileges=yes",
		"DeviceAllow=/dev/net/tun rw", "RestrictAddressFamilies=AF_UNIX AF_NETLINK", "ProtectSystem=strict",
		"BusName=org.vpnprovider1", "Type=notify", "StateDirectory=vpnprovider", "RuntimeDirectory=vpnprovider", "RuntimeDirectoryPreserve=yes",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no line %q", want)
		}
	}
	for _, line := range got {
		if strings.HasPrefix(line, "ReadWritePaths=") {
			t.Errorf("the shipped unit may write more than its own folders: %s", line)
		}
	}
}
