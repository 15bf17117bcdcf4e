package system_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// sessionBus is a user's bus that can start the app com.example.Echo.
const sessionBus = `<busconfig>
  <type>session</type>
  <listen>unix:path=%[1]s/session</listen>
  <servicedir>%[1]s</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>`

const echoService = `[D-BUS Service]
Name=com.example.Echo
Exec=/bin/sh -c "exec %[2]s >>%[1]s/echo.log 2>&1"
`

// An app that does not run is started by the user's agent, because somebody
// connects its config; vpnctl shows what there is to see meanwhile.
func TestAgentStartsTheApp(t *testing.T) {
	top := harness.NewTopology(t)
	bus := harness.StartBus(t, top.Host, harness.BusOptions{Policy: harness.ShippedPolicy})
	harness.StartDaemon(t, top.Host, bus, harness.DaemonOptions{})
	dir := harness.TempDir(t)
	echo := goExample(t, "./dbus/client/examples/echo")
	for name, text := range map[string]string{"bus.conf": sessionBus, "echo.service": echoService} {
		if err := os.WriteFile(filepath.Join(dir, name), fmt.Appendf(nil, text, dir, echo), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	start := func(argv ...string) *harness.Process {
		return top.Host.Start(t, harness.Command{
			Argv: argv, UID: harness.Alice, Env: []string{"DBUS_SESSION_BUS_ADDRESS=unix:path=" + dir + "/session"},
		})
	}
	start("dbus-daemon", "--config-file="+dir+"/bus.conf", "--nofork", "--nopidfile", "--nosyslog", "--print-address").Await(t, `unix:path=`)
	vpnctl := harness.Binary(t, "vpnctl")
	run := func(args ...string) string {
		t.Helper()
		out, err := top.Host.Output(t, harness.Command{Argv: append([]string{vpnctl}, args...), UID: harness.Alice})
		if err != nil {
			t.Errorf("vpnctl %q: %v\n%s", args, err, out)
		}
		return out
	}

	run("create", "com.example.Echo", "Echo")
	out, err := top.Host.Output(t, harness.Command{Argv: []string{vpnctl, "connect", "Echo"}, UID: harness.Alice})
	if err == nil || !strings.Contains(out, "not running") {
		t.Errorf("without an agent: %v\n%s", err, out)
	}
	agent := start(vpnctl, "agent")
	agent.Await(t, "Waiting")
	run("connect", "Echo")
	agent.Await(t, "Starting com.example.Echo")
	top.Host.Run(t, "ping", "-c1", "-W20", "198.18.0.1")

	var dns []struct{ Interface, Names string }
	if err := json.Unmarshal([]byte(run("dns", "--json")), &dns); err != nil || len(dns) == 0 || dns[0].Names != "none" {
		t.Errorf("dns: %v %v", dns, err)
	}
	if out := run("dns"); !strings.Contains(out, "h0") || !strings.Contains(out, harness.InternetDNS) {
		t.Errorf("dns does not show the network below:\n%s", out)
	}
	run("configure", "Echo")
	run("add", "com.example.Echo")
	run("forget", "com.example.Echo")
	if out := run("list"); strings.Contains(out, "Echo") {
		t.Errorf("after forget:\n%s", out)
	}
	harness.Eventually(t, harness.Timeout, "the tunnel is gone", func() error {
		if out := top.Host.Run(t, "ip", "-br", "link"); strings.Contains(out, "vpn") {
			return errors.New(out)
		}
		return nil
	})
}
