// Package dbuspolicy tests the files beside it, unchanged, in the programs that
// read them: dbus-daemon and polkitd, on a host of their own, where the service's
// user exists and polkitd finds our files.
package dbuspolicy

import (
	"context"
	"errors"
	"fmt"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// The user that the policy is about.
const (
	serviceUser = "vpnprovider"
	serviceUID  = 4203
)

const accessDenied = "org.freedesktop.DBus.Error.AccessDenied"

// newHost is one with the service's user: dbus-daemon drops a policy for a user
// that it does not find in passwd.
func newHost(t *testing.T) *harness.Namespace {
	t.Helper()
	host := harness.NewHost(t, "host")
	host.Run(t, "sh", "-ec", fmt.Sprintf("sed -i /^%s:/d /etc/passwd; echo %[1]s:x:%d:65534::/nonexistent:/usr/sbin/nologin >>/etc/passwd", serviceUser, serviceUID))
	return host
}

// startBus runs a dbus-daemon with the stock policy and ours.
func startBus(t *testing.T) *harness.Bus {
	t.Helper()
	return harness.StartBus(t, newHost(t), harness.BusOptions{Policy: harness.ShippedPolicy})
}

// call gives the error's name, "" for success.
func call(t *testing.T, conn *godbus.Conn, destination, method string, args ...any) string {
	t.Helper()
	return errorName(t, method, callObject(t, conn, destination, wire.RootPath, method, args...))
}

func callObject(t *testing.T, conn *godbus.Conn, destination, path, method string, args ...any) *godbus.Call {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Timeout)
	defer cancel()
	return conn.Object(destination, godbus.ObjectPath(path)).CallWithContext(ctx, method, 0, args...)
}

func errorName(t *testing.T, method string, c *godbus.Call) string {
	t.Helper()
	if c.Err == nil {
		return ""
	}
	if e, ok := errors.AsType[godbus.Error](c.Err); ok {
		return e.Name
	}
	t.Fatalf("%s: %v", method, c.Err)
	return ""
}
