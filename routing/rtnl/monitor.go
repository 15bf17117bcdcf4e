package rtnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/routing"
)

// settle is how long changes are gathered, counted from the first.
const settle = 300 * time.Millisecond

// Monitor calls changed soon after the links, addresses, rules or default
// routes of the host have changed, or others have touched our routes: 300 ms
// after the first of several changes. Our own routes do not count. It calls it
// once at the beginning, when no change can be missed any more, and always from
// the same goroutine. It blocks until ctx ends, and then returns nil. It must
// be called in the network namespace of k, and k must not be closed before.
func (k *Kernel) Monitor(ctx context.Context, changed func()) error {
	for {
		err := k.monitor(ctx, changed)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("cannot watch the network: %w", err)
		}
		// Changes were lost: a new subscription begins with a call.
	}
}

func (k *Kernel) monitor(ctx context.Context, changed func()) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return err
	}
	if err = k.filter(socket.GetFd()); err != nil {
		socket.Close()
		return fmt.Errorf("cannot filter messages: %w", err)
	}
	events, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		for {
			if _, _, err := socket.Receive(); err != nil {
				ended <- err
				return
			}
			select {
			case events <- struct{}{}:
			default: // one is waiting already
			}
		}
	}()
	stop := context.AfterFunc(ctx, socket.Close)
	err = gather(events, ended, changed)
	if stop() {
		socket.Close()
	}
	return err
}

// gather calls changed until the receiver has ended, and returns why it did.
func gather(events <-chan struct{}, ended <-chan error, changed func()) error {
	changed()
	var due <-chan time.Time
	for {
		select {
		case err := <-ended:
			return err
		case <-events:
			if due == nil {
				due = time.After(settle)
			}
		case <-due:
			due = nil
			changed()
		}
	}
}

// filter has the kernel drop what is of no interest before it wakes us: routes
// that neither carry our mark nor are default routes, and what we did
// ourselves. It looks at the head of the message.
func (k *Kernel) filter(fd int) error {
	const (
		typeAt, pidAt        = 4, 12
		lengthAt, protocolAt = 17, 21
		drop, accept         = 0, 0xffff
		loadHalf             = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
		loadWord             = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		loadByte             = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		equal                = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		done                 = unix.BPF_RET | unix.BPF_K
	)
	program := []unix.SockFilter{
		{Code: loadHalf, K: typeAt},
		{Code: equal, K: uint32(networkOrder16(unix.RTM_NEWROUTE)), Jt: 1},
		{Code: equal, K: uint32(networkOrder16(unix.RTM_DELROUTE)), Jf: 6},
		{Code: loadWord, K: pidAt},
		{Code: equal, K: networkOrder32(k.conn.pid), Jt: 5},
		{Code: loadByte, K: protocolAt},
		{Code: equal, K: routing.Protocol, Jt: 2},
		{Code: loadByte, K: lengthAt},
		{Code: equal, K: 0, Jf: 1},
		{Code: done, K: accept},
		{Code: done, K: drop},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// The filter reads in network order what the kernel wrote in its own.
func networkOrder16(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}

func networkOrder32(v uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v))
}
