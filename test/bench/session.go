package bench

import "slices"

// Direction of the packets: Up from the host through the tunnel, Down back.
type Direction string

// The directions, and none where a figure has none.
const (
	Up   Direction = "up"
	Down Direction = "down"
	None Direction = ""
)

// Kind of a measurement.
type Kind string

// The kinds, with the units of their values and of what they cost.
const (
	TCP        Kind = "tcp"        // one stream: Gbit/s, CPU-s/GB
	Small      Kind = "small"      // datagrams of 64 bytes: kpackets/s, CPU-µs/packet
	Full       Kind = "full"       // datagrams of 1400 bytes: Gbit/s, CPU-s/GB
	Trip       Kind = "trip"       // idle round trip, p50: µs
	SocketPair Kind = "socketpair" // full packets through a bare socket pair: Gbit/s of TCP payload, CPU-s/GB
	WireGuard  Kind = "wireguard"  // one stream through wireguard-go: Gbit/s, CPU-s/GB
	Routes     Kind = "routes"     // 10,000 routes: ms
	Connect    Kind = "connect"    // Connect and SetParameters, p50: ms
	Memory     Kind = "memory"     // of the idle daemon: MiB
	WakeUps    Kind = "wakeups"    // of the idle daemon: /s
)

// Units of values, and of costs where there are any.
func (k Kind) Units() (value, cost string) {
	switch k {
	case TCP, Full, SocketPair, WireGuard:
		return "Gbit/s", "CPU-s/GB"
	case Small:
		return "kpackets/s", "CPU-µs/packet"
	case Trip:
		return "µs", ""
	case Routes, Connect:
		return "ms", ""
	case Memory:
		return "MiB", ""
	case WakeUps:
		return "wakeups/s", ""
	}
	return "", ""
}

// Foreign is how many processors others may keep busy before a measurement
// counts as noisy.
const Foreign = 0.15

// Measurement is one value of one row.
type Measurement struct {
	Kind      Kind      `json:"kind"`
	Row       string    `json:"row"`
	Direction Direction `json:"direction,omitempty"`
	Round     int       `json:"round"` // from 0
	Value     float64   `json:"value"`
	Cost      float64   `json:"cost,omitempty"`
	Foreign   float64   `json:"foreign"`
	Tries     int       `json:"tries"`
}

// Noisy says that the machine was busy with other things at every try.
func (m Measurement) Noisy() bool { return m.Foreign > Foreign }

// Session is what was measured side by side.
type Session struct {
	Rounds       int
	Measurements []Measurement
}

// Add notes one.
func (s *Session) Add(m Measurement) {
	s.Measurements = append(s.Measurements, m)
	s.Rounds = max(s.Rounds, m.Round+1)
}

// find is a row's measurement of a round.
func (s *Session) find(kind Kind, row string, d Direction, round int) (Measurement, bool) {
	i := slices.IndexFunc(s.Measurements, func(m Measurement) bool {
		return m.Kind == kind && m.Row == row && m.Direction == d && m.Round == round
	})
	if i < 0 {
		return Measurement{}, false
	}
	return s.Measurements[i], true
}

// rounds are all of a row's measurements.
func (s *Session) rounds(kind Kind, row string, d Direction) (all []Measurement) {
	for round := range s.Rounds {
		if m, ok := s.find(kind, row, d, round); ok {
			all = append(all, m)
		}
	}
	return all
}

// Median of values; 0 of none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}
