package system_test

import (
	"os"
	"path/filepath"
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
	h := newExampleHost(t)
	h.start(t, "Echo", goExample(t, "./dbus/client/examples/echo"))
	for _, block := range consoleBlocks(string(text)) {
		h.checkPage(t, [][]consoleStep{block})
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
