package routing

// What is ours is known by these numbers alone, so that a later process finds
// all of it with no journal: the kernel is the journal.
const (
	// Protocol marks every route and rule of ours.
	Protocol = 86

	// TableBase is the routing table of slot 0; slot k has TableBase + k.
	TableBase = 0x56500000

	// MaxSlots is the number of slots, and so of tables.
	MaxSlots = 64

	// RulePriority is that of our rule, before the main table's 32766.
	// RulePriorityMin and RulePriorityMax bound what may be ours.
	RulePriority    = 4650
	RulePriorityMin = 4600
	RulePriorityMax = 4699

	// Metric is that of the routes which are asked first. It is the same in
	// both families, and not 0, which the kernel would read differently in
	// each.
	Metric = 1024

	// GuardMetric is that of the unreachable twins, the worst there is but
	// one: 4294967295 is not removed by a flush of IPv6 routes.
	GuardMetric = 4294967294

	// MarkProtected is the socket mark of traffic that goes around the tunnel,
	// MarkReply that of replies to inbound connections. Both match
	// MarkProtected under MarkMask, which is what the rule tests. MarkByte is
	// all of a mark that is ever read or written.
	MarkProtected = 0x56000000
	MarkReply     = 0x57000000
	MarkMask      = 0xfe000000
	MarkByte      = 0xff000000

	// Alias is the interface alias of a link that we configured.
	Alias = "vpnproviderd"
)

// Table is the routing table of a slot.
func Table(slot int) uint32 { return TableBase + uint32(slot) }
