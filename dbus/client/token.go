package client

import (
	"context"
	"fmt"
)

// PacketToken makes a connection of another program the packet channel. It is
// for a part of the provider in a language that cannot receive descriptors; in
// Go, OpenChannel is all that is needed.
type PacketToken struct {
	// Token is 32 hex digits, good once and for 30 seconds. The program, of the
	// same user, connects to one of the sockets, sends it and reads `ok`; on
	// the stream each with a newline.
	Token string `json:"token"`

	// SeqPacket is the path of the SOCK_SEQPACKET socket, where each message is
	// a packet.
	SeqPacket string `json:"seqpacket"`

	// Stream is the path of the SOCK_STREAM socket, where each packet comes
	// behind its length in 2 bytes in network order.
	Stream string `json:"stream"`
}

// CreatePacketToken makes a token with which a channel can be brought. That
// closes the channel which is open then.
func (s *Session) CreatePacketToken(ctx context.Context) (PacketToken, error) {
	var t PacketToken
	var sockets dict
	if err := s.do(ctx, "CreatePacketToken", []any{dict{}}, &t.Token, &sockets); err != nil {
		return PacketToken{}, fmt.Errorf("cannot create a packet token: %w", err)
	}
	get(properties(sockets), "seqpacket", &t.SeqPacket)
	get(properties(sockets), "stream", &t.Stream)
	return t, nil
}
