// Package driver is the domain of vpnproviderd: providers, the configs that
// they and their users keep, and the one session that the host may have at a
// time. It is modelled on shill's third-party VPN driver and the layer that
// Chrome puts on it. It knows no D-Bus, no netlink and no TUN; what it needs
// of them is declared in ports.go.
//
// # States
//
// A config is idle or failed while it has no session; else it shows its
// session's state.
//
//	          connect                 parameters            notify connected
//	idle ──────────────▶ connecting ──────────────▶ configured ─────────────▶ connected
//	  ▲ ◀─┐                  │  │                       │  ▲                     │
//	  │   │ connect          │  │ parameters, where     │  │ parameters          │ parameters:
//	  │ failed ──▶…          │  │ already notified ─────┼──┼───────────▶ connected  stays
//	  │   ▲                  │                          │  │                     │
//	  │   │ undone           ▼   stop, failure, provider gone, channel closed,   ▼
//	  └───┴───────────── disconnecting ◀── timeout (connecting, reconnecting) ───┘
//
// reconnecting is left by parameters alone, as connecting is. The table is
// next, in state.go; transition in session.go is the one place that writes a
// state.
//
// # Concurrency
//
// Manager.mu holds everything that others can see; it is held for moments, and
// the Observer is told with it held, so the order of what is told is the order
// of what happened. Slow work (the network, the TUN) runs without it, one at a
// time per session, under session.work.
package driver
