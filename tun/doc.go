// Package tun is the data path: it makes the TUN device, moves packets between
// it and the client's channel, and decides which packets may pass.
//
//	         read, ≤16 frames     filter.toClient, split      sendmmsg
//	TUN ───────────────────────────────────────────────────────────────► channel
//	    ◄─────────────────────────────────────────────────────────────── (or sink)
//	         writev               merge, filter.fromClient    recvmmsg, ≤128
//
// A channel is a connected AF_UNIX socket, SOCK_SEQPACKET but for streams. The
// end of file on either side, and a message without bytes, ends the channel. In
// FormatPacket one message is one whole IPv4 or IPv6 packet without any header.
// In FormatOffload it is what the TUN has: a virtio_net_hdr and a packet or
// super-packet. In FormatStream packets come behind their lengths, for clients
// that have no other sockets.
//
// The TUN has super-packets wherever the kernel lets us: the headers of many
// packets of a flow once, with all their payload. They come apart and together
// here with the arithmetic of package vnet, on the headers alone; the system
// calls gather the payload from where it was read to.
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
// if it comes from an address of the tunnel. The filter judges what the kernel
// sends before it is split, and what the client sends before it is merged. A
// virtio_net_hdr of the client's is verified and written anew. Packets that
// are refused are counted by reason, see Tunnel.Statistics.
package tun
