package system

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

// capture begins a capture and returns its stream.
func (c *conn) capture(t testing.TB, session godbus.ObjectPath) *os.File {
	t.Helper()
	var fd godbus.UnixFD
	var info dict
	c.must(c.on(session, "OpenCapture", dict{}), &fd, &info)
	stream := os.NewFile(uintptr(fd), "capture")
	t.Cleanup(func() { stream.Close() })
	return stream
}

// tshark prints fields of a capture's packets.
func (m *machine) tshark(t testing.TB, file string, fields ...string) []string {
	t.Helper()
	argv := []string{"tshark", "-n", "-r", file, "-T", "fields", "-E", "separator=,"}
	for _, field := range fields {
		argv = append(argv, "-e", field)
	}
	var lines []string
	for line := range strings.Lines(m.Host.Run(t, argv...)) {
		if !strings.HasPrefix(line, "Running as user") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// The user and root capture a session, and Wireshark reads in it what passed.
func TestCapture(t *testing.T) {
	t.Parallel()
	harness.Require(t, "tshark")
	v := newVPN(t)
	session, _ := v.establish()
	bob, root := v.dial(t, harness.Bob), v.dial(t, 0)
	bob.refused(bob.on(session, "OpenCapture", dict{}), wire.ErrNotFound)

	folder := t.TempDir()
	var files []string
	ended := make(chan error, 3)
	for i, who := range []*conn{v.provider, v.ui, root} {
		file, err := os.Create(filepath.Join(folder, string(rune('a'+i))))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file.Name())
		stream := who.capture(t, session)
		go func() {
			defer file.Close()
			_, err := io.Copy(file, stream)
			ended <- err
		}()
	}
	iface := v.link(session)
	v.ping(t, "3", includedIPv4)
	v.ping(t, "1", includedIPv6)
	v.disconnect() // ends them
	for range files {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(harness.Timeout):
			t.Fatal("the session has ended, the capture has not")
		}
	}
	question, answer := iface+",2,"+tunnelIPv4+","+includedIPv4+",8", iface+",1,"+includedIPv4+","+tunnelIPv4+",0"
	for _, file := range files {
		lines := v.tshark(t, file, "frame.interface_name", "frame.packet_flags_direction", "ip.src", "ip.dst", "icmp.type")
		for i, line := range lines {
			lines[i] = strings.Replace(strings.Replace(line, "0x00000001", "1", 1), "0x00000002", "2", 1)
		}
		pings := slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return line != question && line != answer })
		if !slices.Equal(pings, []string{question, answer, question, answer, question, answer}) {
			t.Errorf("tshark reads\n%s", strings.Join(lines, "\n"))
		}
		if six := v.tshark(t, file, "icmpv6.type"); !slices.Contains(six, "128") || !slices.Contains(six, "129") {
			t.Errorf("of IPv6 tshark reads %q", six)
		}
	}
}

// Captures that nobody reads hold up neither packets nor the end of the
// session, and there are four at most.
func TestCaptureUnread(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	session, _ := v.establish()
	for range 4 {
		v.ui.capture(t, session)
	}
	v.ui.refused(v.ui.on(session, "OpenCapture", dict{}), wire.ErrLimitExceeded)
	// More than the pipe and what waits for it hold.
	v.Host.Run(t, "ping", "-q", "-c3000", "-i0.001", "-s1300", "-W5", includedIPv4)
	if got := v.ui.property(session, "Statistics").(map[string]uint64); got["txPackets"] < 3000 || got["rxPackets"] < 3000 {
		t.Errorf("of 3000 pings there are %v", got)
	}
	begin := time.Now()
	v.disconnect()
	if took := time.Since(begin); took > harness.Timeout/2 {
		t.Errorf("the end took %s", took)
	}
}

// vpnctl records until it is interrupted, and the file is whole.
func TestCaptureProgram(t *testing.T) {
	t.Parallel()
	harness.Require(t, "tshark")
	v := newVPN(t)
	vpnctl := harness.Binary(t, "vpnctl")
	record := func(file string) (string, error) {
		// To it alone: a second interrupt would end it at once.
		argv := []string{"timeout", "--foreground", "-s", "INT", "--preserve-status", "3", vpnctl, "--bus", v.bus.Address, "capture", configName, "-w", file}
		return v.Host.Output(t, harness.Command{Argv: argv})
	}
	file := filepath.Join(t.TempDir(), "work.pcapng")
	if out, err := record(file); err == nil || !strings.Contains(out, "not connected") {
		t.Errorf("without a session: %v, %s", err, out)
	}
	v.establish()
	ctx, cancel := context.WithCancel(t.Context())
	pinging := make(chan struct{})
	go func() {
		defer close(pinging)
		for ctx.Err() == nil {
			_, _ = v.Host.Output(t, harness.Command{Argv: []string{"ping", "-c3", "-i0.05", "-W5", includedIPv4}})
		}
	}()
	out, err := record(file)
	cancel()
	<-pinging
	if err != nil || !strings.Contains(out, " packets, ") || !strings.Contains(out, "; 0 packets missing") {
		t.Errorf("vpnctl: %v, %s", err, out)
	}
	if types := v.tshark(t, file, "icmp.type"); !slices.Contains(types, "8") || !slices.Contains(types, "0") {
		t.Errorf("tshark reads %q", types)
	}
}
