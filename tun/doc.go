// Package tun is the data path: it makes the TUN device, moves packets between
// it and the client's channel, and decides which packets may pass.
//
//	         read, ≤16 frames     filter.toClient      sendmmsg
//	TUN ─────────────────────────────────────────────────────────► channel
//	    ◄───────────────────────────────────────────────────────── (or sink)
//	         write                filter.fromClient    recvmmsg, ≤128
//
// A channel is a connected AF_UNIX SOCK_SEQPACKET socket; one message is one
// whole IPv4 or IPv6 packet without any header. The end of file on either
// side, and a message without bytes, ends the channel.
//
// Each direction has one goroutine. On its way a packet meets no lock, no
// allocation and no log. Nothing is queued here: when the client does not
// read, its socket fills, the TUN is not read any more, and the kernel drops
// at the end of the device's transmit queue, which is kept short
// (TxQueueLen). While there is neither a channel nor a sink the TUN is not
// read at all.
//
// The client is not trusted. What it sends is checked against the Policy
// before it reaches the TUN, and what the host sends reaches the client only
// if it comes from an address of the tunnel. Packets that are refused are
// counted by reason, see Tunnel.Statistics.
package tun
