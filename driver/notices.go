package driver

import (
	"github.com/vpnprovider/vpnproviderd/driver/params"
	"github.com/vpnprovider/vpnproviderd/routing"
)

// ConfigInfo is a config as it was at one moment.
type ConfigInfo struct {
	ID            ConfigID
	App           string
	Name          string
	Owner         uint32
	Source        string
	State         State
	Session       SessionID // 0: none
	Data          Data      // not to be changed
	AutoConnect   bool
	LastConnected uint64 // microseconds since the epoch; 0: never
	FailureReason string
}

// SessionInfo is a session as it was at one moment.
type SessionInfo struct {
	ID             SessionID
	Config         ConfigID
	Owner          uint32
	State          State
	Link           routing.Link
	Parameters     params.Parameters // not to be changed; zero before the first
	ConnectedSince uint64            // microseconds since the epoch; 0: not yet
	FailureReason  string
}

// Notice is one thing that happened.
type Notice interface{ notice() }

// What an Observer is told of objects, for whoever may see them. A change
// carries the object as it was and as it is.
type (
	ConfigAdded    struct{ Config ConfigInfo }
	ConfigChanged  struct{ Before, After ConfigInfo }
	ConfigGone     struct{ Config ConfigInfo }
	SessionAdded   struct{ Session SessionInfo }
	SessionChanged struct{ Before, After SessionInfo }
	SessionGone    struct{ Session SessionInfo }
)

// What an Observer is told for one connection alone, To.
type (
	// PlatformMessage is a message of a session to its provider.
	PlatformMessage struct {
		To      string
		Session SessionID
		Config  ConfigID
		Message string
		Error   string
	}

	// ConfigCreated: the platform created a config of the provider's app.
	ConfigCreated struct {
		To     string
		Config ConfigInfo
	}

	// ConfigRemoved: another than the provider removed one.
	ConfigRemoved struct {
		To   string
		ID   ConfigID
		Name string
	}

	// UIEvent asks the provider for a dialog. Config is empty where there is
	// none yet.
	UIEvent struct {
		To     string
		Event  string
		Config ConfigID
	}
)

func (ConfigAdded) notice()     {}
func (ConfigChanged) notice()   {}
func (ConfigGone) notice()      {}
func (SessionAdded) notice()    {}
func (SessionChanged) notice()  {}
func (SessionGone) notice()     {}
func (PlatformMessage) notice() {}
func (ConfigCreated) notice()   {}
func (ConfigRemoved) notice()   {}
func (UIEvent) notice()         {}
