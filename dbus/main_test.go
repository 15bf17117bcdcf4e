package dbus_test

import (
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
