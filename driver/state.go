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
	EventUndone          Event = "undone"           // nothing is left of the session
)

// outcome is what an event leads to.
type outcome struct {
	next State

	// end is the state after the undo, where the event ends the session.
	end State
}

// next is the whole state machine: what event does in state. notified says
// that the provider has called NotifyConnectionStateChanged("connected") in
// this session, final where an ending session goes to. ok is false where the
// event does not belong to the state; then nothing happens.
func next(state State, event Event, notified bool, final State) (out outcome, ok bool) {
	alive := state.HasSession() && state != Disconnecting
	switch event {
	case EventConnect:
		return outcome{next: Connecting}, !state.HasSession()
	case EventOpenFailed:
		return outcome{next: Failed}, !state.HasSession()
	case EventParameters:
		if notified {
			return outcome{next: Connected}, alive
		}
		return outcome{next: Configured}, alive
	case EventNotifyConnected:
		// In connecting and reconnecting it is remembered for the next
		// parameters, which alone end those states.
		if state == Configured {
			return outcome{next: Connected}, alive
		}
		return outcome{next: state}, alive
	case EventStop:
		return outcome{next: Disconnecting, end: Idle}, alive
	case EventTimeout:
		return outcome{next: Disconnecting, end: Failed}, state == Connecting || state == Reconnecting
	case EventNotifyFailure, EventProviderGone, EventChannelClosed, EventBroken:
		return outcome{next: Disconnecting, end: Failed}, alive
	case EventUndone:
		return outcome{next: final}, state == Disconnecting
	}
	return outcome{next: state}, false
}
