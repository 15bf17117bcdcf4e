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

// Every console line of the README, run by an ordinary user, prints what
// stands there, however wide its columns are. "…" stands for anything.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(harness.ModuleRoot(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	top := harness.NewTopology(t)
	bus := harness.StartBus(t, top.Host, harness.BusOptions{Policy: harness.ShippedPolicy})
	harness.StartDaemon(t, top.Host, bus, harness.DaemonOptions{})
	dir := harness.TempDir(t)
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "echo"), "./dbus/client/examples/echo")
	build.Dir = harness.ModuleRoot(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	echo := top.Host.Start(t, harness.Command{Argv: []string{filepath.Join(dir, "echo")}, UID: harness.Alice})
	path := filepath.Dir(harness.Binary(t, "vpnctl"))
	alice := func(script string) string {
		out, _ := top.Host.Output(t, harness.Command{
			Argv: []string{"bash", "-c", script}, UID: harness.Alice, Env: []string{"PATH=" + path + ":" + os.Getenv("PATH"), "LC_ALL=C", "SYSTEMD_PAGER=", "COLUMNS=200"},
		})
		return out
	}
	harness.Eventually(t, harness.Timeout, "the app registers", func() error {
		if out := alice("vpnctl list"); !strings.Contains(out, "Echo") {
			return errors.New(out + echo.Output())
		}
		return nil
	})
	for _, block := range consoleBlocks(string(text)) {
		var script strings.Builder
		for _, step := range block {
			script.WriteString("echo '--next--'\n{ " + step.command + "\n} 2>&1\n")
		}
		outputs := strings.Split(alice(script.String()), "--next--\n")[1:]
		for i, step := range block {
			want := strings.ReplaceAll(regexp.QuoteMeta(step.output), "…", ".*")
			if !regexp.MustCompile(`^` + want + `$`).MatchString(trimLines(outputs[i])) {
				t.Errorf("$ %s\nprints\n%s\nREADME says\n%s", step.command, outputs[i], step.output)
			}
		}
	}
}

// consoleStep is a command and what it prints.
type consoleStep struct{ command, output string }

func consoleBlocks(text string) (blocks [][]consoleStep) {
	for _, part := range strings.Split(text, "```console\n")[1:] {
		code, _, _ := strings.Cut(part, "```")
		var block []consoleStep
		for line := range strings.Lines(code) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				block = append(block, consoleStep{command: strings.TrimSpace(command)})
				continue
			}
			block[len(block)-1].output += line
		}
		for i := range block {
			block[i].output = trimLines(block[i].output)
		}
		blocks = append(blocks, block)
	}
	return blocks
}

// trimLines makes the width of columns and blank lines at the end the same.
func trimLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i := range lines {
		lines[i] = strings.Join(strings.Fields(lines[i]), " ")
	}
	return strings.Join(lines, "\n")
}
