package main

import (
	"os"
	"os/exec"
	"testing"
)

// TestPassed: a process takes what it was passed by name, each once, and what
// nobody takes is closed.
func TestPassed(t *testing.T) {
	const variable = "ACTIVATION_TEST"
	if os.Getenv(variable) != "" {
		p := takePassed()
		two, store := p.take("packets"), p.take("store")
		if len(two) != 2 || two[0].Fd() != 3 || two[1].Fd() != 5 || len(store) != 1 || store[0].Fd() != 4 || len(p.take("packets")) != 0 {
			t.Errorf("packets %v, store %v", two, store)
		}
		p.close()
		if f := os.NewFile(6, "left"); f.Close() == nil {
			t.Error("what nobody took stays open")
		}
		if len(takePassed()) != 0 {
			t.Error("taken again")
		}
		return
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	// The shell becomes the test, so it can say for whom they are.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run '^TestPassed$' -test.v`, "")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args[3] = self
	cmd.Env = append(os.Environ(), variable+"=1", "LISTEN_FDS=4", "LISTEN_FDNAMES=packets:store:packets:other")
	cmd.ExtraFiles = []*os.File{null, null, null, null}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
