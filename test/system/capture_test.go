package system

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

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
	for range 3 { // one answered before the next
		v.ping(t, "1", includedIPv4)
	}
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
	// More than the pipe and what waits for it hold, each as soon as the one before
	// is answered: none is lost, however busy the machine.
	v.Host.Run(t, "ping", "-q", "-A", "-c3000", "-s1300", "-W20", includedIPv4)
	v.awaitCounted(session, "txPackets", 3000)
	v.awaitCounted(session, "rxPackets", 3000)
	begin := time.Now()
	v.disconnect()
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the end took %s", took)
	}
}

// vpnctl records until it is interrupted, and the file is whole.
func TestCaptureProgram(t *testing.T) {
	t.Parallel()
	harness.Require(t, "tshark")
	v := newVPN(t)
	file := filepath.Join(t.TempDir(), "work.pcapng")
	record := harness.Command{Argv: []string{harness.Binary(t, "vpnctl"), "--bus", v.bus.Address, "capture", configName, "-w", file}}
	if out, err := v.Host.Output(t, record); err == nil || !strings.Contains(out, "not connected") {
		t.Errorf("without a session: %v, %s", err, out)
	}
	v.establish()
	vpnctl := v.Host.Start(t, record)
	harness.Eventually(t, harness.Timeout, "it records", func() error {
		_, err := os.Stat(file)
		return err
	})
	v.ping(t, "3", includedIPv4)
	harness.Eventually(t, harness.Timeout, "the packets are in the file", func() error {
		if info, err := os.Stat(file); err != nil || info.Size() < 6*100 {
			return fmt.Errorf("%v, %w", info, err)
		}
		return nil
	})
	vpnctl.Signal(unix.SIGINT)
	if err, out := vpnctl.Wait(t), vpnctl.Output(); err != nil || !strings.Contains(out, " packets, ") || !strings.Contains(out, "; 0 packets missing") {
		t.Errorf("vpnctl: %v, %s", err, out)
	}
	if types := v.tshark(t, file, "icmp.type"); !slices.Contains(types, "8") || !slices.Contains(types, "0") {
		t.Errorf("tshark reads %q", types)
	}
}
