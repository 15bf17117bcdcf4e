package ui

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

func TestReport(t *testing.T) {
	p := Program{Name: "prog", NotFound: "prog list", NotAuthorized: "ask somebody"}
	interrupted, interrupt := context.WithCancel(t.Context())
	interrupt()
	const daemon, bus = "  start the daemon: systemctl start vpnproviderd\n", "  " + hintBus + "\n"
	notConnected := func(err error, hint string) error {
		return fmt.Errorf("Work: %w", &Error{ExitNotConnected, err, hint})
	}
	for _, tt := range []struct {
		ctx  context.Context
		err  error
		code int
		want string
	}{
		{t.Context(), nil, ExitOK, ""},
		{t.Context(), errors.New("a\n\x1bb"), ExitFailed, "prog: a\n\ufffdb\n"},
		{t.Context(), notConnected(errors.New("no"), "h\x1bint"), ExitNotConnected, "prog: Work: no\n  h\ufffdint\n"},
		{t.Context(), notConnected(client.ErrNotRunning, "hint"), ExitNotRunning, "prog: Work: vpnproviderd is not running\n" + daemon},
		{t.Context(), client.ErrClosed, ExitNotRunning, "prog: the connection to the bus is closed\n" + bus},
		{t.Context(), notConnected(client.ErrNotFound, ""), ExitNotFound, "prog: Work: not found\n  prog list\n"},
		{t.Context(), notConnected(client.ErrNotAuthorized, ""), ExitNotConnected, "prog: Work: not authorized\n  ask somebody\n"},
		{t.Context(), notConnected(client.ErrNotAuthorized, "hint"), ExitNotConnected, "prog: Work: not authorized\n  hint\n"},
		{t.Context(), notConnected(context.DeadlineExceeded, ""), ExitTimeout, "prog: Work: context deadline exceeded\n"},
		{t.Context(), &Error{ExitNotRunning, context.DeadlineExceeded, "hint"}, ExitNotRunning, "prog: context deadline exceeded\n  hint\n"},
		{interrupted, notConnected(context.Canceled, ""), ExitInterrupted, "prog: Work: context canceled\n"},
		{t.Context(), notConnected(context.Canceled, ""), ExitNotConnected, "prog: Work: context canceled\n"},
	} {
		var told bytes.Buffer
		if code := p.Report(tt.ctx, &told, tt.err); code != tt.code || told.String() != tt.want {
			t.Errorf("%v: %d %q, want %d %q", tt.err, code, told.String(), tt.code, tt.want)
		}
	}
}
