package driver

import (
	"strings"
	"testing"
)

// Every cell of the table: what each event leads to in each state, and where
// an ending session goes to. "-" is an event that does not belong to the state.
func TestEveryStateAndEvent(t *testing.T) {
	states := []State{Idle, Connecting, Configured, Connected, Reconnecting, Disconnecting, Failed}
	for _, row := range []struct {
		event    Event
		notified bool
		want     string // for each of the states
	}{
		{EventConnect, false, "connecting - - - - - connecting"},
		{EventOpenFailed, false, "failed - - - - - failed"},
		{EventParameters, false, "- configured configured configured configured - -"},
		{EventParameters, true, "- connected connected connected connected - -"},
		{EventNotifyConnected, true, "- connecting connected connected reconnecting - -"},
		{EventNotifyFailure, false, "- >failed >failed >failed >failed - -"},
		{EventStop, false, "- >idle >idle >idle >idle - -"},
		{EventProviderGone, false, "- >failed >failed >failed >failed - -"},
		{EventChannelClosed, false, "- >failed >failed >failed >failed - -"},
		{EventTimeout, false, "- >failed - - >failed - -"},
		{EventBroken, false, "- >failed >failed >failed >failed - -"},
		{EventUndone, false, "- - - - - failed -"},
		{Event("unheard of"), false, "- - - - - - -"},
	} {
		for i, want := range strings.Fields(row.want) {
			out, ok := next(states[i], row.event, row.notified, Failed)
			got := string(out.next)
			switch {
			case !ok:
				got = "-"
			case out.end != "":
				if out.next != Disconnecting {
					t.Errorf("%s + %s: ends the session and goes to %s", states[i], row.event, out.next)
				}
				got = ">" + string(out.end)
			}
			if got != want {
				t.Errorf("%s + %s (notified %v): %s, want %s", states[i], row.event, row.notified, got, want)
			}
		}
	}
}
