package harness

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// volatile is what changes by itself: counters, remaining lifetimes, the
// numbers of interfaces.
var volatile = regexp.MustCompile(` expires [0-9]+sec| (valid|preferred)_lft [0-9]+sec|(counter packets) [0-9]+ bytes [0-9]+|^[0-9]+: |@if[0-9]+|link-netns(id)? \S+`)

// knobs are the settings of each interface that a VPN may turn.
var knobs = []string{
	"ipv4/conf/*/rp_filter", "ipv4/conf/*/arp_ignore", "ipv4/conf/*/src_valid_mark", "ipv4/conf/*/forwarding",
	"ipv6/conf/*/disable_ipv6", "ipv6/conf/*/addr_gen_mode", "ipv6/conf/*/accept_ra", "ipv6/conf/*/forwarding",
}

// Snapshot is the network state of a host as text: links, addresses, the routes
// of all tables, rules, the firewall, the settings of interfaces, and the
// bytes of resolv.conf. What changes by itself is left out, and lines without
// an order are sorted, so two snapshots of the same state are equal.
type Snapshot string

// Snapshot takes one. resolvConf is the file's path as the host sees it.
func (n *Namespace) Snapshot(t testing.TB, resolvConf string) Snapshot {
	t.Helper()
	var b strings.Builder
	section := func(title, text string, ordered bool) {
		var lines []string
		for line := range strings.Lines(text) {
			lines = append(lines, strings.TrimRight(volatile.ReplaceAllString(line, "$2"), " \n"))
		}
		if !ordered {
			slices.Sort(lines)
		}
		b.WriteString("== " + title + "\n" + strings.Join(lines, "\n") + "\n")
	}
	section("links", n.Run(t, "ip", "-o", "link", "show"), false)
	section("addresses", n.Run(t, "ip", "-o", "addr", "show"), false)
	section("routes IPv4", n.Run(t, "ip", "-4", "-N", "route", "show", "table", "all"), false)
	section("routes IPv6", n.Run(t, "ip", "-6", "-N", "route", "show", "table", "all"), false)
	// A rule's line begins with its priority, which is no number to be left out.
	section("rules IPv4", strings.ReplaceAll(n.Run(t, "ip", "-4", "-N", "rule", "show"), ":\t", " "), true)
	section("rules IPv6", strings.ReplaceAll(n.Run(t, "ip", "-6", "-N", "rule", "show"), ":\t", " "), true)
	section("nftables", n.Run(t, "nft", "-n", "list", "ruleset"), true)
	section("interface settings", n.Run(t, "sh", "-c", "cd /proc/sys/net && grep . "+strings.Join(knobs, " ")), false)
	section("resolv.conf "+resolvConf, n.resolvConf(t, resolvConf), true)
	return Snapshot(b.String())
}

// resolvConf tells a link from a file, and either from nothing.
func (n *Namespace) resolvConf(t testing.TB, path string) string {
	t.Helper()
	var text string
	err := n.Do(func() error {
		info, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			text = "(none)"
			return nil
		}
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		text = info.Mode().String() + "\n" + string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Diff returns what differs, - for the receiver's and + for the other's; empty
// when they are equal.
func (s Snapshot) Diff(other Snapshot) string {
	return cmp.Diff(strings.Split(string(s), "\n"), strings.Split(string(other), "\n"))
}

// RequireSnapshot waits until the host's state is that of the snapshot, and
// ends the test with the difference when it does not become so.
func (n *Namespace) RequireSnapshot(t testing.TB, want Snapshot, resolvConf string) {
	t.Helper()
	Eventually(t, Timeout, "the network state is as before", func() error {
		if diff := want.Diff(n.Snapshot(t, resolvConf)); diff != "" {
			return errors.New("- wanted + found\n" + diff)
		}
		return nil
	})
}
