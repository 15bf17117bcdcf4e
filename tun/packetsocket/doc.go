// Package packetsocket is the way in for clients that cannot receive
// descriptors: sockets that listen where everybody can connect. A client
// presents a token that it was given elsewhere; then its connection is the
// packet channel of a session, which is somebody else's affair.
//
//	client                           server
//	connect ───────────────────────▶ whose process is it?
//	32 hex digits ─────────────────▶ claim(uid, token)
//	                           ◀──── ok, or the end
//	packets ◀──────────────────────▶ packets
//
// There is one socket that keeps the bounds of messages (SOCK_SEQPACKET), and
// one that does not (SOCK_STREAM), where the token and the answer are lines.
//
// Anybody may connect, so what that can cost is bounded: a connection without a
// token has a place among a few of its user's, and all users' together, for
// seconds. What is over that is closed at once.
package packetsocket
