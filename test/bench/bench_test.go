package bench

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/test/harness"
)

var (
	quick   = flag.Bool("quick", false, "short periods and few rounds, for a look: no bar is about these")
	retries = flag.Int("retries", 5, "how often a disturbed measurement is repeated")
	out     = flag.String("out", "", "folder to write the session into")
	doc     = flag.String("doc", "", "document whose tables are replaced by the session's")
)

func TestMain(m *testing.M) { harness.Main(m) }

// plan is how much is measured.
type plan struct {
	rounds  int
	retries int // of a measurement that was disturbed
	period  time.Duration
	trips   int
	connect int
	idle    bool // also watch the idle daemon
}

func plans() plan {
	if *quick {
		return plan{rounds: 2, period: 500 * time.Millisecond, trips: 50, connect: 10}
	}
	return plan{rounds: 5, retries: *retries, period: 2 * time.Second, trips: 200, connect: 100, idle: true}
}

// rows are the beds of a session.
type rows struct {
	tunnels   []*bed
	bus       *bed
	wireguard []*bed
	idle      *host
}

func (l *lab) rows() rows {
	l.Helper()
	// What the unit of the service has set.
	r := rows{idle: l.host("idle", "WATCHDOG_USEC=60000000")}
	present := func(beds ...*bed) []*bed { return slices.DeleteFunc(beds, func(b *bed) bool { return b == nil }) }
	r.tunnels = present(
		l.direct(B1, "plain", 0),
		l.direct(B3, "split", unix.IFF_VNET_HDR),
		l.direct(B4, "whole", unix.IFF_VNET_HDR),
		l.daemon(Packet, wire.FormatPacket, unix.IFF_VNET_HDR),
		l.daemon(Each, "each", 0),
		l.daemon(Library, "library", unix.IFF_VNET_HDR),
		l.daemon(Offload, wire.FormatOffload, unix.IFF_VNET_HDR),
	)
	r.bus = l.daemon(DBus, "dbus", 0)
	r.wireguard = present(
		l.wireguard(Root, ""),
		l.wireguard(Packet, wire.FormatPacket),
		l.wireguard(Offload, wire.FormatOffload),
	)
	return r
}

// BenchmarkSession measures everything side by side: what each round has of one
// kind stands next to each other in time. It prints each measurement as
// benchstat reads it, then the tables.
func BenchmarkSession(b *testing.B) {
	l := newLab(b)
	p, r := plans(), l.rows()
	s, commit := &Session{}, commit()
	fmt.Print("\n", Units())
	var lastCall time.Time
	for round := range p.rounds {
		take := func(one func() Measurement) { l.take(s, round, p.retries, one) }
		take(func() Measurement { return l.connect(r.idle, p.connect) })
		lastCall = time.Now()
		l.round(r, p, take)
	}
	if p.idle {
		for _, m := range both(l.idleDaemon(r.idle, lastCall)) {
			l.take(s, 0, 0, func() Measurement { return m })
		}
	}
	environment := l.environment(p, commit)
	fmt.Print("\n", s.Markdown(environment))
	if *out != "" {
		if err := s.WriteFiles(*out, environment); err != nil {
			b.Error(err)
		}
	}
	if *doc != "" {
		if err := ReplaceIn(*doc, s.Markdown(environment)); err != nil {
			b.Error(err)
		}
	}
}

func both(one, other Measurement) []Measurement { return []Measurement{one, other} }

// TestSession measures everything for a moment, so that what `make bench` does
// is known to work, and every row to carry what it was given.
func TestSession(t *testing.T) {
	l := newLab(t)
	s, r := &Session{}, l.rows()
	p := plan{period: 50 * time.Millisecond, trips: 3, connect: 2}
	take := func(one func() Measurement) { l.take(s, 0, p.retries, one) }
	take(func() Measurement { return l.connect(r.idle, p.connect) })
	l.round(r, p, take)
	judged := map[string]bool{}
	for _, v := range s.Verdicts() {
		judged[v.Text] = true
	}
	for _, bar := range Bars() {
		if !judged[bar.Text] && bar.Name != "P11" {
			t.Errorf("nothing was measured for %s: %s", bar.Name, bar.Text)
		}
	}
}

// round takes every measurement once.
func (l *lab) round(r rows, p plan, take func(func() Measurement)) {
	l.Helper()
	each := func(beds []*bed, f func(*bed, Direction) Measurement) {
		for _, d := range []Direction{Up, Down} {
			for _, b := range beds {
				take(func() Measurement { return f(b, d) })
			}
		}
	}
	each(r.tunnels, func(b *bed, d Direction) Measurement { return l.tcp(TCP, b, d, p.period) })
	take(func() Measurement { return l.bare(r.tunnels[0].near, p.period) })
	each([]*bed{r.bus}, func(b *bed, d Direction) Measurement { return l.full(b, d, p.period) })
	each(r.tunnels, func(b *bed, d Direction) Measurement { return l.small(b, d, p.period) })
	for _, b := range r.tunnels {
		take(func() Measurement { return l.trip(b, p.trips) })
	}
	each(r.wireguard, func(b *bed, d Direction) Measurement { return l.tcp(WireGuard, b, d, p.period) })
	take(func() Measurement { return l.routes(RouteAdd, addEach) })
	take(func() Measurement { return l.routes(Network, apply) })
}

// take measures until it is not disturbed, or has been tried often enough; then
// the least disturbed counts.
func (l *lab) take(s *Session, round, retries int, one func() Measurement) {
	l.Helper()
	m := one()
	tries := 1
	for ; m.Noisy() && tries <= retries; tries++ {
		if again := one(); again.Foreign < m.Foreign {
			m = again
		}
	}
	m.Round, m.Tries = round, tries
	s.Add(m)
	fmt.Println(m.Line())
}

// environment is a sentence on what it was measured on.
func (l *lab) environment(p plan, commit string) string {
	l.Helper()
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		l.Fatal(err)
	}
	cpu := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("Commit %s; %d × %s, Linux %s, %s; TCP with %s; %d rounds of %v.",
		commit, runtime.NumCPU(), cpu, unix.ByteSliceToString(uname.Release[:]), runtime.Version(),
		strings.Join(slices.Sorted(maps.Keys(l.congestion)), ", "), p.rounds, p.period)
}

// commit is what is measured.
func commit() string {
	name, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(name))
}
