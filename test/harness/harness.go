package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Timeout is how long helpers wait for a thing that takes milliseconds on an
// idle machine. Nothing that goes well waits for it, so it is long enough for a
// machine that runs all tests at once, and more.
const Timeout = time.Minute

// Require skips the test where root or one of the programs is missing. With CI
// in the environment it fails instead: there, a test that did not run is a
// fault.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	complain := t.Skipf
	if os.Getenv("CI") != "" {
		complain = t.Fatalf
	}
	if os.Geteuid() != 0 {
		complain("needs root, for network namespaces")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			complain("needs %s; test/install-deps installs it", p)
		}
	}
}

// Eventually calls check until it returns nil, and ends the test when it does
// not within the timeout.
func Eventually(t testing.TB, timeout time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, timeout, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// tempPrefix and the process id begin the name of every temporary directory,
// and ownerVariable with it is in the environment of every process, so that
// those of killed runs can be told.
const (
	tempPrefix    = "vpt-"
	ownerVariable = "VPNPROVIDER_TEST="
)

var reapOnce sync.Once

// TempDir returns a directory that is removed when the test ends. Unlike
// t.TempDir's, other users can enter it, and its path is short enough for
// sockets.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := tempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("cannot remove a temporary directory: %v", err)
		}
	})
	return dir
}

func tempDir() (string, error) {
	reapOnce.Do(removeLeftovers)
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", tempPrefix, os.Getpid()))
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// removeLeftovers removes the temporary directories of test processes that are
// no more, and kills the processes that the kernel did not kill with them: it
// forgets to for those that change their user or group.
func removeLeftovers() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), tempPrefix+"*-*"))
	for _, dir := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), tempPrefix), "-")
		if isGone(owner) {
			_ = os.RemoveAll(dir)
		}
	}
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range environs {
		environ, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for variable := range strings.SplitSeq(string(environ), "\x00") {
			owner, ours := strings.CutPrefix(variable, ownerVariable)
			if pid, err := strconv.Atoi(strings.Split(name, "/")[2]); ours && err == nil && isGone(owner) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// isGone reports whether there is no process with that id.
func isGone(pid string) bool {
	n, err := strconv.Atoi(pid)
	return err == nil && n > 0 && errors.Is(syscall.Kill(n, 0), syscall.ESRCH)
}

// binaries are the programs built so far by this test process.
var binaries struct {
	sync.Mutex
	dir   string
	built map[string]error
}

// Binary returns the path of the program ./cmd/NAME of this module, built once
// a test process, and with the race detector where the test itself has it.
// The package's TestMain must call Main.
func Binary(t testing.TB, name string) string {
	t.Helper()
	return built(t, name, raceEnabled)
}

// PlainBinary is Binary without the race detector, for figures: the detector
// makes a program several times slower and larger.
func PlainBinary(t testing.TB, name string) string {
	t.Helper()
	return built(t, name, false)
}

func built(t testing.TB, name string, race bool) string {
	t.Helper()
	binaries.Lock()
	defer binaries.Unlock()
	if binaries.dir == "" {
		dir, err := tempDir()
		if err != nil {
			t.Fatal(err)
		}
		binaries.dir, binaries.built = dir, map[string]error{}
		for _, kind := range []string{"plain", "race"} {
			if err := os.Mkdir(filepath.Join(dir, kind), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The name is the program's own: people's scripts find it in their PATH.
	kind, args := "plain", []string{"build"}
	if race {
		kind, args = "race", []string{"build", "-race"}
	}
	path := filepath.Join(binaries.dir, kind, name)
	args = append(args, "-o", path)
	err, done := binaries.built[path]
	if !done {
		cmd := exec.Command("go", append(args, "./cmd/"+name)...)
		cmd.Dir = ModuleRoot(t)
		out, buildErr := cmd.CombinedOutput()
		if buildErr != nil {
			err = fmt.Errorf("%w\n%s", buildErr, out)
		}
		binaries.built[path] = err
	}
	if err != nil {
		t.Fatalf("cannot build %s: %v", name, err)
	}
	return path
}

// Main runs the tests and removes what Binary built. Call it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if binaries.dir != "" {
		_ = os.RemoveAll(binaries.dir)
	}
	os.Exit(code)
}

// ModuleRoot returns the directory of this module's go.mod.
func ModuleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the working directory")
	return ""
}
