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
	File          string // of the administrator's; empty: it is another's
	State         State
	Session       SessionID // 0: none
	Data          Data      // not to be changed
	AutoConnect   bool
	Lockdown      bool
	LastConnected uint64 // microseconds since the epoch; 0: never
	FailureReason string

	size int // of Data
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
	Uplink         Uplink
}

// Notice is one thing that happened.
type Notice interface{ notice() }

// ConfigAdded is told to whoever may see the config.
type ConfigAdded struct{ Config ConfigInfo }

// ConfigChanged has the config as it was and as it is.
type ConfigChanged struct{ Before, After ConfigInfo }

// ConfigGone has the config as it was last.
type ConfigGone struct{ Config ConfigInfo }

// HealthChanged is told to everybody: all of what is wrong now.
type HealthChanged struct{ Problems []Problem }

// SessionAdded is told to whoever may see the session.
type SessionAdded struct{ Session SessionInfo }

// SessionChanged has the session as it was and as it is.
type SessionChanged struct{ Before, After SessionInfo }

// SessionGone has the session as it was last.
type SessionGone struct{ Session SessionInfo }

// PlatformMessage is a message of a session to its provider, the connection
// To alone.
type PlatformMessage struct {
	To      string
	Session SessionID
	Config  ConfigID
	Message string
	Error   string
}

// ConfigCreated tells the provider To of a config that the platform created
// for its app.
type ConfigCreated struct {
	To     string
	Config ConfigInfo
}

// ConfigRemoved tells the provider To of a config that another removed.
type ConfigRemoved struct {
	To   string
	ID   ConfigID
	Name string
}

// StartProvider tells the agent To to start an app.
type StartProvider struct {
	To  string
	App string
}

// UIEvent asks the provider To for a dialog. Config is empty where there is
// none yet.
type UIEvent struct {
	To     string
	Event  string
	Config ConfigID
}

func (ConfigAdded) notice()     {}
func (ConfigChanged) notice()   {}
func (ConfigGone) notice()      {}
func (HealthChanged) notice()   {}
func (SessionAdded) notice()    {}
func (SessionChanged) notice()  {}
func (SessionGone) notice()     {}
func (PlatformMessage) notice() {}
func (ConfigCreated) notice()   {}
func (ConfigRemoved) notice()   {}
func (UIEvent) notice()         {}
func (StartProvider) notice()   {}
