package nft

import (
	"net/netip"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// These are the parts of rules. Each loads what it needs into the one register
// and leaves nothing there that another needs.
type exprs = []expr.Any

const register = 1 // NFT_REG_1

// rule puts parts together.
func rule(parts ...exprs) exprs { return slices.Concat(parts...) }

func verdict(kind expr.VerdictKind) exprs { return exprs{&expr.Verdict{Kind: kind}} }

func drop() exprs   { return verdict(expr.VerdictDrop) }
func accept() exprs { return verdict(expr.VerdictAccept) }

// jumpTo goes to another chain for good.
func jumpTo(chain string) exprs { return exprs{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }

func is(data ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func meta(key expr.MetaKey, data ...byte) exprs {
	return exprs{&expr.Meta{Key: key, Register: register}, is(data...)}
}

// from and to match packets that came in, or go out, by a link.
func from(link int) exprs { return meta(expr.MetaKeyIIF, native(uint32(link))...) }
func to(link int) exprs   { return meta(expr.MetaKeyOIF, native(uint32(link))...) }

func family(v6 bool) exprs {
	if v6 {
		return meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6)
	}
	return meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4)
}

func protocol(number byte) exprs { return meta(expr.MetaKeyL4PROTO, number) }

func transport(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

func header(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func and(mask ...byte) expr.Any { return andXor(mask, make([]byte, len(mask))) }

func andXor(mask, xor []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(len(mask)), Mask: mask, Xor: xor}
}

// source and destination match addresses of packets.
func source(p netip.Prefix) exprs {
	if p.Addr().Is4() {
		return address(p, 12)
	}
	return address(p, 8)
}

func destination(a netip.Addr) exprs {
	p := netip.PrefixFrom(a, a.BitLen())
	if a.Is4() {
		return address(p, 16)
	}
	return address(p, 24)
}

func address(p netip.Prefix, offset uint32) exprs {
	whole := p.Addr().AsSlice()
	mask := make([]byte, len(whole))
	for bit := range p.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	parts := append(family(!p.Addr().Is4()), header(offset, uint32(len(whole))))
	if p.Bits() < len(whole)*8 {
		parts = append(parts, and(mask...))
	}
	return append(parts, is(whole...))
}

// icmp matches the types from first to last.
func icmp(v6 bool, first, last byte) exprs {
	number := byte(unix.IPPROTO_ICMP)
	if v6 {
		number = unix.IPPROTO_ICMPV6
	}
	return rule(family(v6), protocol(number), exprs{
		transport(0, 1), &expr.Range{Op: expr.CmpOpEq, Register: register, FromData: []byte{first}, ToData: []byte{last}},
	})
}

// opening matches a TCP segment that asks for a connection.
func opening() exprs {
	const syn, finSynRstAck = 0x02, 0x17
	return rule(protocol(unix.IPPROTO_TCP), exprs{transport(13, 1), and(finSynRstAck), is(syn)})
}

// ports matches UDP over IPv4.
func ports(source, destination uint16) exprs {
	data := slices.Concat(binaryutil.BigEndian.PutUint16(source), binaryutil.BigEndian.PutUint16(destination))
	return rule(family(false), protocol(unix.IPPROTO_UDP), exprs{transport(0, 4), is(data...)})
}

// toPort matches UDP or TCP, of both families.
func toPort(number byte, port uint16) exprs {
	return rule(protocol(number), exprs{transport(2, 2), is(binaryutil.BigEndian.PutUint16(port)...)})
}

// ofUser matches what the processes of a user send.
func ofUser(uid uint32) exprs { return meta(expr.MetaKeySKUID, native(uid)...) }

// local matches packets to, or with fromHost from, an address of this host.
func local(fromHost bool) exprs { return addressType(fromHost, unix.RTN_LOCAL) }

func addressType(ofSource bool, kind uint32) exprs {
	return exprs{
		&expr.Fib{Register: register, ResultADDRTYPE: true, FlagSADDR: ofSource, FlagDADDR: !ofSource}, is(native(kind)...),
	}
}

// notTo matches packets to whose source a packet would not leave by the link.
func notTo(link int) exprs {
	return exprs{
		&expr.Fib{Register: register, ResultOIF: true, FlagSADDR: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: native(uint32(link))},
	}
}

// Of the marks of packets and connections only the byte that is ours is looked
// at and written.

func marked(mark uint32) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyMARK, Register: register}, and(native(routing.MarkByte)...), is(native(mark)...)}
}

func setMark(mark uint32) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: register}, andXor(native(^uint32(routing.MarkByte)), native(mark)),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: register, SourceRegister: true},
	}
}

func connMarked(mark uint32) exprs {
	return exprs{&expr.Ct{Key: expr.CtKeyMARK, Register: register}, and(native(routing.MarkByte)...), is(native(mark)...)}
}

func setConnMark(mark uint32) exprs {
	return exprs{
		&expr.Ct{Key: expr.CtKeyMARK, Register: register}, andXor(native(^uint32(routing.MarkByte)), native(mark)),
		&expr.Ct{Key: expr.CtKeyMARK, Register: register, SourceRegister: true},
	}
}

// first matches a packet that begins a connection, as far as is known.
func first() exprs {
	const stateNew = 8
	return exprs{&expr.Ct{Key: expr.CtKeySTATE, Register: register}, and(native(stateNew)...), is(native(stateNew)...)}
}

// reply matches a packet that goes the other way than the first one.
func reply() exprs {
	const directionReply = 1
	return exprs{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: register}, is(directionReply)}
}
