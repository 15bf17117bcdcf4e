package driver

import (
	"strings"
	"testing"
)

// Every cell of the table: what each event leads to in each state under each
// circumstance, where an ending session goes to (">idle"), what the provider is
// told ("!linkDown") and whether the timer starts anew ("+") or stops ("-").
// "." is an event that does not belong to the state.
func TestEveryStateAndEvent(t *testing.T) {
	states := []State{Idle, Connecting, Configured, Connected, Reconnecting, Disconnecting, Failed}
	plain, told := circumstances{final: Failed}, circumstances{notified: true, final: Failed}
	again, down := circumstances{reconnect: true, final: Failed}, circumstances{reconnect: true, down: true, final: Failed}
	late, lateTold := circumstances{late: true, final: Failed}, circumstances{late: true, notified: true, final: Failed}
	for _, row := range []struct {
		event Event
		c     circumstances
		want  string // for each of the states
	}{
		{EventConnect, plain, "connecting!connected+ . . . . . connecting!connected+"},
		{EventOpenFailed, plain, "failed . . . . . failed"},
		{EventParameters, plain, ". configured- configured- configured- configured- . ."},
		{EventParameters, told, ". connected- connected- connected- connected- . ."},
		{EventParameters, late, ". connecting configured connected reconnecting . ."},
		{EventParameters, lateTold, ". connecting configured connected reconnecting . ."},
		{EventNotifyConnected, told, ". connecting connected connected reconnecting . ."},
		{EventNotifyFailure, plain, ". >failed- >failed- >failed- >failed- . ."},
		{EventStop, plain, ". >idle- >idle- >idle- >idle- . ."},
		{EventProviderGone, plain, ". >failed- >failed- >failed- >failed- . ."},
		{EventChannelClosed, plain, ". >failed- >failed- >failed- >failed- . ."},
		{EventTimeout, plain, ". >failed- . . >failed- . ."},
		{EventBroken, plain, ". >failed- >failed- >failed- >failed- . ."},
		{EventUndone, plain, ". . . . . failed ."},
		{EventUplinkLost, plain, ". >failed- >failed- >failed- >failed- . ."},
		{EventUplinkLost, again, ". reconnecting!linkDown- reconnecting!linkDown- reconnecting!linkDown- reconnecting!linkDown- . ."},
		{EventUplinkLost, down, ". reconnecting- reconnecting- reconnecting- reconnecting- . ."},
		{EventUplinkReplaced, plain, ". >failed- >failed- >failed- >failed- . ."},
		{EventUplinkReplaced, again, ". reconnecting!linkChanged+ reconnecting!linkChanged+ reconnecting!linkChanged+ reconnecting!linkChanged+ . ."},
		{EventUplinkBack, plain, ". . . . . . ."},
		{EventUplinkBack, again, ". . . . . . ."},
		{EventUplinkBack, down, ". reconnecting!linkUp+ reconnecting!linkUp+ reconnecting!linkUp+ reconnecting!linkUp+ . ."},
		{EventSleep, plain, ". . . . . . ."},
		{EventSleep, again, ". connecting!suspend configured!suspend connected!suspend reconnecting!suspend . ."},
		{EventWake, plain, ". . . . . . ."},
		{EventWake, again, ". reconnecting!resume+ reconnecting!resume+ reconnecting!resume+ reconnecting!resume+ . ."},
		{EventWake, down, ". reconnecting!resume- reconnecting!resume- reconnecting!resume- reconnecting!resume- . ."},
		{Event("unheard of"), plain, ". . . . . . ."},
	} {
		for i, want := range strings.Fields(row.want) {
			out, ok := next(states[i], row.event, row.c)
			got := string(out.next)
			if out.end != "" {
				if out.next != Disconnecting {
					t.Errorf("%s + %s: ends the session and goes to %s", states[i], row.event, out.next)
				}
				got = ">" + string(out.end)
			}
			if out.message != "" {
				got += "!" + out.message
			}
			got += map[timing]string{timerStops: "-", timerStarts: "+"}[out.timer]
			if !ok {
				got = "."
			}
			if got != want {
				t.Errorf("%s + %s under %+v: %s, want %s", states[i], row.event, row.c, got, want)
			}
		}
	}
}
