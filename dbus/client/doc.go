// Package client is the Go library for VPN apps, and for programs that show or
// connect VPNs, on vpnproviderd. With it any unprivileged program is a VPN
// client: the daemon makes the TUN device and applies addresses, routes and
// DNS; the program moves packets between a channel and its server.
//
// # A VPN app
//
// An app calls [Client.RegisterProvider] and then [Provider.Serve], which calls
// a function of the app for each session, or it reads [Provider.Events] for as
// long as it runs, where [SessionStarted] means that the user connects one of
// its configs. For each session the app then, in a goroutine of its own:
//
//  1. reaches its server, with sockets that do not go through the tunnel:
//     [Session.DialControl] in a net.Dialer, [Session.ListenControl] in a
//     net.ListenConfig, or [Session.Protect];
//  2. calls [Session.SetParameters], which brings the tunnel up, all or
//     nothing;
//  3. calls [Session.OpenChannel] and copies packets both ways, best in
//     batches: [Channel.ReadPackets] and [Channel.WritePackets] move many
//     with one system call;
//  4. calls [Session.NotifyConnected];
//  5. ends when [Session.Messages] is closed, after [MessageDisconnected].
//     The channel gives io.EOF at about the same time.
//
// The five minutes that an app has for 1 and 2 end with [MessageError] and
// [MessageDisconnected]. An app that gives up calls [Session.NotifyFailure].
// If the app dies, all that it caused is undone within 100 ms.
//
// With [Parameters.Reconnect] a session outlives changes of the physical
// network and sleep: after [MessageLinkUp], [MessageLinkChanged] and
// [MessageResume] the app reaches its server again and calls SetParameters
// again. [MessageSuspend] is answered with [Session.Acknowledge], when the app
// is ready for the machine to sleep.
//
// Tools that take a datagram socket in place of a TUN device, such as
// openconnect, are served by [Relay].
//
// # A user interface
//
// [Client.Watch] tells of all configs and sessions and of what changes;
// [Config.Connect], [Config.Disconnect] and the others act. Connect returns
// early: the watched State says how it goes on.
//
// # Order, loss, and who may block
//
// Events, messages and changes come in the order in which the daemon sent
// them, and none is lost: what the program does not take waits in memory. So
// a slow program delays only itself, and the same goroutine may take an event
// and call. Signals that another peer of the bus forges are dropped.
//
// When a call returns, whatever the daemon sent before its answer is in the
// channels already.
//
// # Restarts
//
// A daemon that is restarted, as in an upgrade, keeps its sessions. The
// library registers the provider again and goes on; sessions that did not
// survive get [MessageDisconnected] with an internal error. Watch reads
// everything again and tells what differs. Handles stay good.
//
// # Errors
//
// Calls fail with errors of the context, with [ErrClosed], or with an [*Error]
// from the daemon or the bus: branch with errors.Is(err, [ErrNotFound]) and
// show the message, which says what was wrong with which value.
//
// All types may be used from several goroutines at once.
package client
