// Package system tests the programs of this project on a real kernel, a real
// message bus and real VPN servers, in namespaces of their own.
package system

import (
	"os"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		play(role) // one of the processes that the tests start
		return
	}
	harness.Main(m)
}
