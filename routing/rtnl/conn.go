package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

const (
	// batch is how many messages travel in one datagram. The kernel is done
	// with all of them when the call that sends it returns.
	batch = 1024

	// receiveBuffer holds an error for each message of a batch many times.
	receiveBuffer = 4 << 20
)

// conn is a netlink socket of our own, for what netlink.Handle does not do:
// many messages in one datagram, and looking at the IPv6 side of a link.
type conn struct {
	handle *nl.SocketHandle
	pid    uint32

	mu     sync.Mutex // protects the rest
	buf    []byte
	answer [64 << 10]byte
}

func newConn() (*conn, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	// Without these, answers may be lost, and what they were to is done again.
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = s.SetReceiveBufferSize(receiveBuffer, true)
	pid, err := s.GetPid()
	if err != nil {
		s.Close()
		return nil, err
	}
	return &conn{handle: &nl.SocketHandle{Socket: s}, pid: pid}, nil
}

func (c *conn) close() { c.handle.Close() }

// routes carries out operations on routes, many at a time.
func (c *conn) routes(ctx context.Context, ops []routing.Op) []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := make([]error, len(ops))
	for at := 0; at < len(ops); at += batch {
		end := min(at+batch, len(ops))
		if err := ctx.Err(); err != nil {
			for i := at; i < len(ops); i++ {
				errs[i] = err
			}
			return errs
		}
		err := c.send(ops[at:end], errs[at:end])
		if err == nil {
			continue
		}
		// Which of them are in effect is not known. They are idempotent.
		for i := at; i < end; i++ {
			clear(errs[i : i+1])
			if err = c.send(ops[i:i+1], errs[i:i+1]); err != nil {
				errs[i] = err
			}
		}
	}
	return errs
}

// errUnanswered means that an answer of the kernel found no room.
var errUnanswered = errors.New("an answer of the kernel was lost")

// send asks for an acknowledgement of the last message alone: errors of the
// others come without being asked for. It puts them in errs. The kernel answers
// before the call that sends returns, so nothing is waited for.
func (c *conn) send(ops []routing.Op, errs []error) error {
	s := c.handle.Socket
	s.Lock()
	defer s.Unlock()
	first := atomic.AddUint32(&c.handle.Seq, uint32(len(ops))) - uint32(len(ops)) + 1
	c.buf = c.buf[:0]
	for i, op := range ops {
		flags := unix.NLM_F_REQUEST
		if i == len(ops)-1 {
			flags |= unix.NLM_F_ACK
		}
		c.buf = appendRoute(c.buf, op, flags, first+uint32(i))
	}
	if err := unix.Sendto(s.GetFd(), c.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	return c.answers(first, ops, errs)
}

// answers reads all answers, so that the next ones find room.
func (c *conn) answers(first uint32, ops []routing.Op, errs []error) error {
	answered, lost := false, false
	for {
		n, _, err := unix.Recvfrom(c.handle.Socket.GetFd(), c.answer[:], unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN) && answered && !lost:
			return nil
		case errors.Is(err, unix.EAGAIN):
			return errUnanswered
		case errors.Is(err, unix.ENOBUFS):
			lost = true
			continue
		case err != nil:
			return err
		}
		msgs, err := syscall.ParseNetlinkMessage(c.answer[:n])
		if err != nil {
			return err
		}
		for _, m := range msgs {
			i := m.Header.Seq - first
			if m.Header.Type != unix.NLMSG_ERROR || i >= uint32(len(ops)) || len(m.Data) < 4 {
				continue // of an earlier exchange
			}
			errs[i] = errorOf(m, ops[i].Verb)
			answered = answered || i == uint32(len(ops))-1
		}
	}
}

func errorOf(m syscall.NetlinkMessage, verb routing.Verb) error {
	errno := int32(binary.NativeEndian.Uint32(m.Data))
	if errno == 0 {
		return nil
	}
	err := unix.Errno(-errno)
	if verb == routing.Delete && gone(err) {
		return nil
	}
	return err
}

// appendRoute appends the message that carries out op.
func appendRoute(b []byte, op routing.Op, flags int, seq uint32) []byte {
	r, _ := op.Object.(routing.Route)
	kind := unix.RTM_NEWROUTE
	if op.Verb == routing.Delete {
		kind = unix.RTM_DELROUTE
	} else {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	v4 := r.Dst.Addr().Is4()
	family, scope := unix.AF_INET6, unix.RT_SCOPE_UNIVERSE
	if v4 {
		family = unix.AF_INET
		if r.Type == routing.Unicast {
			scope = unix.RT_SCOPE_LINK
		}
	}
	start := len(b)
	b = binary.NativeEndian.AppendUint32(b, 0) // the length, later
	b = binary.NativeEndian.AppendUint16(b, uint16(kind))
	b = binary.NativeEndian.AppendUint16(b, uint16(flags))
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, byte(family), byte(r.Dst.Bits()), 0, 0,
		unix.RT_TABLE_UNSPEC, routing.Protocol, byte(scope), kernelType(r.Type), 0, 0, 0, 0)
	if v4 {
		a := r.Dst.Addr().As4()
		b = appendAttr(b, unix.RTA_DST, a[:])
	} else {
		a := r.Dst.Addr().As16()
		b = appendAttr(b, unix.RTA_DST, a[:])
	}
	b = appendAttr32(b, unix.RTA_TABLE, r.Table)
	b = appendAttr32(b, unix.RTA_PRIORITY, r.Metric)
	if r.Type == routing.Unicast {
		b = appendAttr32(b, unix.RTA_OIF, uint32(r.Link))
	}
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// appendAttr appends data, whose length is a multiple of 4.
func appendAttr(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(b, data...)
}

func appendAttr32(b []byte, kind uint16, v uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, 4+4)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return binary.NativeEndian.AppendUint32(b, v)
}

func kernelType(t routing.RouteType) byte {
	switch t {
	case routing.Throw:
		return unix.RTN_THROW
	case routing.Unreachable:
		return unix.RTN_UNREACHABLE
	default:
		return unix.RTN_UNICAST
	}
}

func (c *conn) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: c.handle}
	return req
}
