package system_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// exampleHost is a host with the daemon, and users with vpnctl in their PATH.
type exampleHost struct {
	*harness.Topology
	env []string
}

func newExampleHost(t *testing.T) *exampleHost {
	t.Helper()
	harness.Require(t, "dbus-daemon", "busctl", "ping")
	top := harness.NewTopology(t)
	bus := harness.StartBus(t, top.Host, harness.BusOptions{Policy: harness.ShippedPolicy})
	harness.StartDaemon(t, top.Host, bus, harness.DaemonOptions{})
	path := filepath.Dir(harness.Binary(t, "vpnctl"))
	return &exampleHost{top, []string{"PATH=" + path + ":" + os.Getenv("PATH"), "LC_ALL=C", "SYSTEMD_PAGER=", "COLUMNS=200"}}
}

// alice runs a script as an ordinary user.
func (h *exampleHost) alice(t *testing.T, script string) (string, error) {
	t.Helper()
	return h.Host.Output(t, harness.Command{Argv: []string{"bash", "-c", script}, UID: harness.Alice, Env: h.env})
}

// start starts an app as Alice and waits for its config.
func (h *exampleHost) start(t *testing.T, config string, argv ...string) *harness.Process {
	t.Helper()
	app := h.Host.Start(t, harness.Command{Argv: argv, UID: harness.Alice, Env: h.env})
	harness.Eventually(t, harness.Timeout, "the app registers", func() error {
		if out, err := h.alice(t, "vpnctl show "+config); err != nil {
			return errors.New(out + app.Output())
		}
		return nil
	})
	return app
}

// The apps that docs/providers.md shows are VPN clients: what is sent into
// their tunnel is answered, again after a reconnect, and nothing stays of them.
func TestExamples(t *testing.T) {
	t.Run("Mirror", func(t *testing.T) { checkExample(t, "Mirror", goExample(t, "./docs/examples/mirror")) })
	t.Run("EchoPy", func(t *testing.T) { checkExample(t, "EchoPy", pythonExample(t, "echo.py")...) })
	t.Run("StreamPy", func(t *testing.T) { checkExample(t, "StreamPy", pythonExample(t, "stream.py")...) })
}

func checkExample(t *testing.T, config string, argv ...string) {
	t.Helper()
	const resolvConf = "/etc/resolv.conf"
	h := newExampleHost(t)
	before := h.Host.Snapshot(t, resolvConf)
	app := h.start(t, config, argv...)
	for range 2 {
		out, err := h.alice(t, "vpnctl connect --wait 20 "+config+" && ping -n -c1 -W20 198.18.0.1 && vpnctl disconnect")
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, out, app.Output())
		}
	}
	h.Host.RequireSnapshot(t, before, resolvConf)
	if out, err := h.alice(t, "vpnctl connect --wait 20 "+config); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, app.Output())
	}
	app.Kill()
	harness.Eventually(t, harness.Timeout, "the death of the app ends its session", func() error {
		if out, _ := h.alice(t, "vpnctl show "+config); !strings.Contains(out, "provider gone") {
			return errors.New(out)
		}
		return nil
	})
	h.Host.RequireSnapshot(t, before, resolvConf)
}

func goExample(t *testing.T, pkg string) string {
	t.Helper()
	program := filepath.Join(harness.TempDir(t), filepath.Base(pkg))
	build := exec.Command("go", "build", "-o", program, pkg)
	build.Dir = harness.ModuleRoot(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// pythonExample copies it to where Alice can read it. The interpreter is the
// distribution's, which has its packages.
func pythonExample(t *testing.T, name string) []string {
	t.Helper()
	const python = "/usr/bin/python3"
	harness.Require(t, python)
	if out, err := exec.Command(python, "-c", "import jeepney").CombinedOutput(); err != nil {
		harness.Require(t, "python3-jeepney") // which is no program: says what is missing
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(harness.ModuleRoot(t), "docs", "examples", name))
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(harness.TempDir(t), name)
	if err := os.WriteFile(script, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{python, script}
}

// Every console line of a page, run by an ordinary user with the app echo,
// prints what stands there. The lines of a page are one script.
func TestPages(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(harness.ModuleRoot(t), "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	echo := goExample(t, "./dbus/client/examples/echo")
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		blocks := consoleBlocks(string(text))
		if len(blocks) == 0 {
			continue
		}
		t.Run(filepath.Base(page), func(t *testing.T) {
			h := newExampleHost(t)
			h.start(t, "Echo", echo)
			h.checkPage(t, blocks)
		})
	}
}

func (h *exampleHost) checkPage(t *testing.T, blocks [][]consoleStep) {
	t.Helper()
	var script strings.Builder
	var steps []consoleStep
	for _, block := range blocks {
		for _, step := range block {
			steps = append(steps, step)
			script.WriteString("echo '--next--'\n{ " + step.command + "\n} 2>&1\n")
		}
	}
	out, _ := h.alice(t, script.String())
	outputs := strings.Split(out, "--next--\n")[1:]
	if len(outputs) != len(steps) {
		t.Fatalf("%d of %d commands ran:\n%s", len(outputs), len(steps), out)
	}
	for i, step := range steps {
		want := strings.ReplaceAll(regexp.QuoteMeta(step.output), "…", ".*")
		if !regexp.MustCompile(`^` + want + `$`).MatchString(trimLines(outputs[i])) {
			t.Errorf("$ %s\nprints\n%s\nthe page says\n%s", step.command, outputs[i], step.output)
		}
	}
}
