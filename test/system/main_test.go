// Package system tests the programs of this project on a real kernel, a real
// message bus and real VPN servers, in namespaces of their own.
package system

import (
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
