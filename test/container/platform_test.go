package container_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/container"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

const officeFile = `app = "com.example.Office"
name = "Office"
user = "alice"
`

// TestProvisioned: an administrator gives a user a config by a file. The daemon
// sees it come and change from inside of its sandbox, and systemctl reload has
// it read again.
func TestProvisioned(t *testing.T) {
	harness.Require(t, "systemd-nspawn", "mmdebstrap")
	m := newMachine(t, programs{
		daemon: container.Build(t, "./cmd/vpnproviderd"),
		client: container.Build(t, "./test/container/testclient"),
	})
	const path = "/etc/vpnprovider/configs.d/office.toml"
	m.Run(t, "systemctl", "start", "vpnproviderd")
	m.WriteFile(t, path, officeFile, 0o644)
	find := func(want string) {
		t.Helper()
		harness.Eventually(t, harness.Timeout, "alice's configs hold "+want, func() error {
			out, err := m.Output(container.Command{User: container.Alice, Argv: []string{
				"busctl", "call", "org.vpnprovider1", "/org/vpnprovider1", "org.vpnprovider1.Manager", "ListConfigs",
			}})
			if err != nil || !strings.Contains(out, want) {
				return errors.New(out)
			}
			return nil
		})
	}
	logged := func(want string) {
		t.Helper()
		harness.Eventually(t, harness.Timeout, "the journal says "+want, func() error {
			if out := m.Run(t, "journalctl", "-u", "vpnproviderd", "--no-pager", "-o", "cat"); !strings.Contains(out, want) {
				return errors.New(out)
			}
			return nil
		})
	}
	find(`"com.example.Office" "Office" "idle"`)
	m.WriteFile(t, path, officeFile+"colour = 'red'\n", 0o644)
	logged(path + ":4: colour: there is no such key")
	m.WriteFile(t, path, strings.Replace(officeFile, `"Office"`, `"Office 2"`, 1), 0o600)
	logged(path + ":1: it cannot be read: let the group vpnprovider read it")
	find(`"com.example.Office" "Office" "idle"`)
	m.Run(t, "chgrp", "vpnprovider", path)
	m.Run(t, "chmod", "640", path)
	find(`"com.example.Office" "Office 2" "idle"`)

	// What a link leads to is not watched.
	m.WriteFile(t, "/opt/office.toml", officeFile, 0o644)
	m.Run(t, "ln", "-sf", "/opt/office.toml", path)
	find(`"com.example.Office" "Office" "idle"`)
	m.Run(t, "sed", "-i", "/^name/s/Office/Office 3/", "/opt/office.toml")
	m.Run(t, "systemctl", "reload", "vpnproviderd")
	find(`"com.example.Office" "Office 3" "idle"`)
	if got := m.Run(t, "systemctl", "show", "vpnproviderd", "--value", "-p", "NRestarts", "-p", "ActiveState"); strings.TrimSpace(got) != "active\n0" && strings.TrimSpace(got) != "0\nactive" {
		t.Errorf("after the reload the unit is %q", got)
	}
}
