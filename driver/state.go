package driver

// State of a config and of its session. See the package comment for the
// diagram.
type State string

// The states. A config without a session is idle or failed; one with a
// session has the session's state.
const (
	Idle          State = "idle"
	Connecting    State = "connecting"
	Configured    State = "configured"
	Connected     State = "connected"
	Reconnecting  State = "reconnecting"
	Disconnecting State = "disconnecting"
	Failed        State = "failed"
)

// HasSession says whether a session exists in that state.
func (s State) HasSession() bool { return s != Idle && s != Failed }

// Event is what can happen to a config and its session.
type Event string

// The events.
const (
	EventConnect         Event = "connect"          // a session begins, its TUN exists
	EventOpenFailed      Event = "open failed"      // there is no TUN for it
	EventParameters      Event = "parameters"       // SetParameters succeeded
	EventNotifyConnected Event = "notify connected" // the provider says that it is connected
	EventNotifyFailure   Event = "notify failure"   // the provider gives up
	EventStop            Event = "stop"             // Disconnect, removal, replacement, shutdown
	EventProviderGone    Event = "provider gone"    // it left the bus, unregistered or was replaced
	EventChannelClosed   Event = "channel closed"   // and no other one came in time
	EventTimeout         Event = "timeout"          // of connecting and reconnecting
	EventBroken          Event = "broken"           // the TUN died
	EventUplinkLost      Event = "uplink lost"      // the host has no default route any more
	EventUplinkReplaced  Event = "uplink replaced"  // it has another one
	EventUplinkBack      Event = "uplink back"      // it has one again
	EventSleep           Event = "sleep"            // the machine is about to
	EventWake            Event = "wake"             // it has slept
	EventUndone          Event = "undone"           // nothing is left of the session
)

// circumstances are what besides the state decides where an event leads.
type circumstances struct {
	// notified: the provider has called NotifyConnectionStateChanged with
	// "connected" in this session.
	notified bool

	// reconnect: the parameter; false before the first parameters.
	reconnect bool

	// down: the last that the provider was told of the uplink is linkDown.
	down bool

	// late: the parameters were begun before the provider was told what to
	// answer with parameters.
	late bool

	// final is where an ending session goes to.
	final State
}

// outcome is what an event leads to.
type outcome struct {
	next State

	// end is the state after the undo, where the event ends the session.
	end State

	// message is what the provider is told; empty: nothing.
	message string

	timer timing
}

// timing is what becomes of the timer of connecting and reconnecting.
type timing int

const (
	timerKeeps timing = iota
	timerStops
	timerStarts // anew
)

// next is the whole state machine: what event does in state. ok is false where
// the event does not belong to the state; then nothing happens.
func next(state State, event Event, c circumstances) (out outcome, ok bool) {
	alive := state.HasSession() && state != Disconnecting
	switch event {
	case EventConnect:
		return outcome{next: Connecting, message: MessageConnected, timer: timerStarts}, !state.HasSession()
	case EventOpenFailed:
		return outcome{next: Failed}, !state.HasSession()
	case EventParameters:
		return nextParameters(state, c), alive
	case EventNotifyConnected:
		// In connecting and reconnecting it is remembered for the next
		// parameters, which alone end those states.
		if state == Configured {
			return outcome{next: Connected}, alive
		}
		return outcome{next: state}, alive
	case EventUplinkLost, EventUplinkReplaced, EventUplinkBack:
		out, ok := nextUplink(event, c)
		return out, ok && alive
	case EventSleep:
		return outcome{next: state, message: MessageSuspend}, alive && c.reconnect
	case EventWake:
		return nextWake(c), alive && c.reconnect
	case EventStop:
		return outcome{next: Disconnecting, end: Idle, timer: timerStops}, alive
	case EventTimeout:
		return outcome{next: Disconnecting, end: Failed, timer: timerStops}, state == Connecting || state == Reconnecting
	case EventNotifyFailure, EventProviderGone, EventChannelClosed, EventBroken:
		return outcome{next: Disconnecting, end: Failed, timer: timerStops}, alive
	case EventUndone:
		return outcome{next: c.final}, state == Disconnecting
	}
	return outcome{next: state}, false
}

// nextParameters is next for parameters that hold now. Late ones hold, too, but
// are not the answer that reconnecting waits for.
func nextParameters(state State, c circumstances) outcome {
	switch {
	case c.late:
		return outcome{next: state}
	case c.notified:
		return outcome{next: Connected, timer: timerStops}
	}
	return outcome{next: Configured, timer: timerStops}
}

// nextWake is next for the end of sleep. Without an uplink there is nothing to
// reconnect over, and so no time limit, until linkUp starts it.
func nextWake(c circumstances) outcome {
	out := outcome{next: Reconnecting, message: MessageResume, timer: timerStarts}
	if c.down {
		out.timer = timerStops
	}
	return out
}

// nextUplink is next for what becomes of the uplink under a session. Without
// reconnect its loss and its change end the session; with it the guard holds
// the traffic back until the provider has set parameters again.
func nextUplink(event Event, c circumstances) (out outcome, ok bool) {
	switch {
	case event == EventUplinkBack:
		// Who was not told that it is down is not told that it is up.
		return outcome{next: Reconnecting, message: MessageLinkUp, timer: timerStarts}, c.reconnect && c.down
	case !c.reconnect:
		return outcome{next: Disconnecting, end: Failed, timer: timerStops}, true
	case event == EventUplinkReplaced:
		return outcome{next: Reconnecting, message: MessageLinkChanged, timer: timerStarts}, true
	case c.down:
		return outcome{next: Reconnecting, timer: timerStops}, true
	}
	return outcome{next: Reconnecting, message: MessageLinkDown, timer: timerStops}, true
}
