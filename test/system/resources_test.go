package system

import (
	"fmt"
	"os"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// descriptors counts those that the daemon has open.
func (m *machine) descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.daemon.Process().PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// requireDescriptors waits until the daemon has no more than that open.
func (m *machine) requireDescriptors(t testing.TB, most int) {
	t.Helper()
	harness.Eventually(t, harness.Timeout, "the daemon's descriptors", func() error {
		if n := m.descriptors(t); n > most {
			return fmt.Errorf("%d are open, %d were before", n, most)
		}
		return nil
	})
}
