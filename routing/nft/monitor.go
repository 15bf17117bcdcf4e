package nft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Monitor calls changed when another program has touched our tables. It calls it
// once at the beginning, when no change can be missed any more, and always from
// the same goroutine: changes meanwhile are one. It blocks until ctx ends, and
// then returns nil. It must be called in the network namespace of f.
func (f *Firewall) Monitor(ctx context.Context, changed func()) error {
	for {
		err := f.monitor(ctx, changed)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("cannot watch the firewall: %w", err)
		}
		// Changes were lost: a new subscription begins with a call.
	}
}

func (f *Firewall) monitor(ctx context.Context, changed func()) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(conn.SetReadBuffer(receiveBuffer), conn.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		return errors.Join(err, conn.Close())
	}
	events, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() { ended <- f.receive(conn, events) }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer conn.Close()
	changed()
	for {
		select {
		case err := <-ended:
			return err
		case <-events:
			changed()
		}
	}
}

// receive tells of what others did to our tables until conn is closed.
func (f *Firewall) receive(conn *netlink.Conn, events chan<- struct{}) error {
	for {
		messages, err := conn.Receive()
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(messages, f.foreign) {
			continue
		}
		select {
		case events <- struct{}{}:
		default: // one is waiting already
		}
	}
}

// foreign says whether a message tells what others did to our tables. The
// table's name is the first attribute of every kind of message that has one.
func (f *Firewall) foreign(m netlink.Message) bool {
	const table = 1
	if m.Header.PID == f.port || m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
		return false
	}
	return string(bytes.TrimRight(attribute(m.Data, table), "\x00")) == tableName
}
