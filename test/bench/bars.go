package bench

// The rows that bars are about.
const (
	B1       = "B1" // root, plain TUN, one packet a system call
	B3       = "B3" // root, super-packets taken apart and put together by wireguard-go
	B4       = "B4" // root, super-packets as they are
	Packet   = "packet"
	Each     = "packet-each" // the same, by an app that moves one packet a system call
	Library  = "library"     // an app that leaves the format to the library, and has packets
	Offload  = "offload"
	DBus     = "dbus" // a message on the bus a packet
	Bare     = "bare" // socket pair
	Root     = "root" // wireguard-go on its own TUN
	Network  = "routing.Network"
	RouteAdd = "Handle.RouteAdd"
	Daemon   = "daemon"
)

// tolerance is what of a bar the median must reach, while the best reaches all.
const tolerance = 0.9

// Bar is what a figure must reach.
type Bar struct {
	Name, Text string
	Must, Goal float64 // a Goal of 0: none beyond Must

	// Less: smaller values are better.
	Less bool

	// Unit of the figure; none: it is a ratio.
	Unit string

	// value in one round; ok is false where something was not measured.
	value func(s *Session, d Direction, round int) (point, bool)
}

// point is a figure in one round.
type point struct {
	value float64
	noisy bool
}

// Bars are all of them, in their order.
func Bars() []Bar {
	return []Bar{
		{Name: "P1", Text: "`packet`, TCP, against B1", Must: 2.0, Goal: 2.7, value: ratio(TCP, Packet, TCP, B1)},
		{Name: "P2", Text: "`packet`, TCP, against B3", Must: 0.38, Goal: 0.54, value: ratio(TCP, Packet, TCP, B3)},
		{Name: "P3", Text: "processor time of B3 and a bare socket pair, against `packet`", Must: 0.70, Goal: 0.90, value: floor},
		{Name: "P4", Text: "`offload`, TCP, against B4", Must: 0.75, Goal: 0.95, value: ratio(TCP, Offload, TCP, B4)},
		{Name: "P5", Text: "wireguard-go over `packet`, against root", Must: 0.60, value: ratio(WireGuard, Packet, WireGuard, Root)},
		{Name: "P5", Text: "wireguard-go over `offload`, against root", Must: 0.80, Goal: 0.95, value: ratio(WireGuard, Offload, WireGuard, Root)},
		{Name: "P6", Text: "64 B packets a second, `packet` against B1", Must: 1.3, Goal: 2, value: ratio(Small, Packet, Small, B1)},
		{Name: "P6", Text: "64 B packets a second, `packet` against B3", Must: 0.5, Goal: 0.8, value: ratio(Small, Packet, Small, B3)},
		{Name: "P7", Text: "idle round trip, added to B3 by `packet`", Must: 150, Goal: 40, Less: true, Unit: "µs", value: difference(Packet, B3)},
		{Name: "P7", Text: "idle round trip, added to B4 by `offload`", Must: 150, Goal: 40, Less: true, Unit: "µs", value: difference(Offload, B4)},
		{Name: "P8", Text: "`packet`, TCP, against a D-Bus message a packet", Must: 50, value: ratio(TCP, Packet, Full, DBus)},
		{Name: "P8", Text: "`offload`, TCP, against a D-Bus message a packet", Must: 50, Goal: 150, value: ratio(TCP, Offload, Full, DBus)},
		{Name: "P9", Text: "10,000 exclusions, faster than netlink.Handle.RouteAdd", Must: 2.5, Goal: 4, value: ratio(Routes, RouteAdd, Routes, Network)},
		{Name: "P10", Text: "Connect and SetParameters with 10 routes, p50", Must: 10, Goal: 3, Less: true, Unit: "ms", value: plain(Connect)},
		{Name: "P11", Text: "memory of the idle daemon", Must: 20, Goal: 12, Less: true, Unit: "MiB", value: plain(Memory)},
		{Name: "P11", Text: "wake-ups of the idle daemon", Must: 1, Less: true, Unit: "/s", value: plain(WakeUps)},
	}
}

func ratio(kind Kind, row string, againstKind Kind, against string) func(*Session, Direction, int) (point, bool) {
	return func(s *Session, d Direction, round int) (point, bool) {
		a, okA := s.find(kind, row, d, round)
		b, okB := s.find(againstKind, against, d, round)
		if !okA || !okB || b.Value == 0 {
			return point{}, false
		}
		return point{a.Value / b.Value, a.Noisy() || b.Noisy()}, true
	}
}

func difference(row, from string) func(*Session, Direction, int) (point, bool) {
	return func(s *Session, d Direction, round int) (point, bool) {
		a, okA := s.find(Trip, row, d, round)
		b, okB := s.find(Trip, from, d, round)
		return point{a.Value - b.Value, a.Noisy() || b.Noisy()}, okA && okB
	}
}

func plain(kind Kind) func(*Session, Direction, int) (point, bool) {
	return func(s *Session, d Direction, round int) (point, bool) {
		m, ok := s.find(kind, Daemon, d, round)
		return point{m.Value, m.Noisy()}, ok
	}
}

// floor is what a channel of one packet a message must at least cost, against
// what ours costs.
func floor(s *Session, d Direction, round int) (point, bool) {
	ours, ok := s.find(TCP, Packet, d, round)
	if !ok || ours.Cost == 0 {
		return point{}, false
	}
	b3, okB3 := s.find(TCP, B3, d, round)
	bare, okBare := s.find(SocketPair, Bare, None, round)
	return point{(b3.Cost + bare.Cost) / ours.Cost, ours.Noisy() || b3.Noisy() || bare.Noisy()}, okB3 && okBare
}

// Verdict of a bar in one direction.
type Verdict struct {
	Bar
	Direction    Direction
	Median, Best float64
	Noisy        bool
	Rounds       int
}

// Met says whether the figure reaches a bar: the median almost, as it is
// subject to what else the machine does, and the best.
func (v Verdict) Met(bar float64) bool {
	if v.Less {
		return v.Median <= bar/tolerance && v.Best <= bar
	}
	return v.Median >= bar*tolerance && v.Best >= bar
}

// Verdicts are of all bars for which something was measured.
func (s *Session) Verdicts() (all []Verdict) {
	for _, bar := range Bars() {
		for _, d := range []Direction{Up, Down, None} {
			v := Verdict{Bar: bar, Direction: d}
			var values []float64
			for round := range s.Rounds {
				p, ok := bar.value(s, d, round)
				if !ok {
					continue
				}
				if better := p.value > v.Best; len(values) == 0 || better != bar.Less {
					v.Best = p.value
				}
				values = append(values, p.value)
				v.Noisy = v.Noisy || p.noisy
			}
			if v.Rounds = len(values); v.Rounds > 0 {
				v.Median = Median(values)
				all = append(all, v)
			}
		}
	}
	return all
}
