// Package wire is the D-Bus contract of vpnproviderd: names, enumerations,
// error names and the introspection XML that is their single source. It is a
// leaf: service, Go library and tests share it, and none of them can drift.
package wire

// BusName is the well-known name of the service.
const BusName = "org.vpnprovider1"

// Object paths. Configs and sessions are children of the last two.
const (
	RootPath    = "/org/vpnprovider1"
	ConfigRoot  = RootPath + "/config"
	SessionRoot = RootPath + "/session"
	NoPath      = "/" // "there is none"
)

// Interfaces of the service.
const (
	ManagerInterface = BusName + ".Manager"
	ConfigInterface  = BusName + ".Config"
	SessionInterface = BusName + ".Session"
)

// Standard interfaces that the objects carry.
const (
	PeerInterface           = "org.freedesktop.DBus.Peer"
	IntrospectableInterface = "org.freedesktop.DBus.Introspectable"
	PropertiesInterface     = "org.freedesktop.DBus.Properties"
	ObjectManagerInterface  = "org.freedesktop.DBus.ObjectManager"
)

// Errors of the service.
const (
	errorPrefix = BusName + ".Error."

	ErrInvalidParameter   = errorPrefix + "InvalidParameter"
	ErrNotAuthorized      = errorPrefix + "NotAuthorized"
	ErrNotOwner           = errorPrefix + "NotOwner"
	ErrNotFound           = errorPrefix + "NotFound"
	ErrAlreadyExists      = errorPrefix + "AlreadyExists"
	ErrWrongState         = errorPrefix + "WrongState"
	ErrLimitExceeded      = errorPrefix + "LimitExceeded"
	ErrBusy               = errorPrefix + "Busy"
	ErrNotSupported       = errorPrefix + "NotSupported"
	ErrProviderNotRunning = errorPrefix + "ProviderNotRunning"
	ErrTimeout            = errorPrefix + "Timeout"
	ErrFailed             = errorPrefix + "Failed"
)

// Standard errors that the service answers with.
const (
	ErrUnknownObject    = "org.freedesktop.DBus.Error.UnknownObject"
	ErrUnknownMethod    = "org.freedesktop.DBus.Error.UnknownMethod"
	ErrUnknownInterface = "org.freedesktop.DBus.Error.UnknownInterface"
	ErrUnknownProperty  = "org.freedesktop.DBus.Error.UnknownProperty"
	ErrPropertyReadOnly = "org.freedesktop.DBus.Error.PropertyReadOnly"
	ErrInvalidArgs      = "org.freedesktop.DBus.Error.InvalidArgs"
)

// States of a config and its session.
const (
	StateIdle          = "idle"
	StateConnecting    = "connecting"
	StateConfigured    = "configured"
	StateConnected     = "connected"
	StateReconnecting  = "reconnecting"
	StateDisconnecting = "disconnecting"
	StateFailed        = "failed"
)

// Platform messages. Clients ignore those that they do not know.
const (
	MessageConnected    = "connected"
	MessageDisconnected = "disconnected"
	MessageError        = "error"
	MessageLinkDown     = "linkDown"
	MessageLinkUp       = "linkUp"
	MessageLinkChanged  = "linkChanged"
	MessageSuspend      = "suspend"
	MessageResume       = "resume"
)

// What a provider says in NotifyConnectionStateChanged.
const (
	NotifyConnected = "connected"
	NotifyFailure   = "failure"
)

// UI events.
const (
	ShowAddDialog       = "showAddDialog"
	ShowConfigureDialog = "showConfigureDialog"
)

// Sources of a config.
const (
	SourceProvider = "provider"
	SourcePlatform = "platform"
)

// Reasons, as in FailureReason and in the text of `error` and
// `disconnected`. An internal error is followed by its cause.
const (
	ReasonUser            = ""
	ReasonReplaced        = "replaced"
	ReasonRemoved         = "removed"
	ReasonProviderFailure = "provider failure"
	ReasonProviderGone    = "provider gone"
	ReasonChannelClosed   = "channel closed"
	ReasonTimeout         = "connection timed out"
	ReasonUplinkLost      = "underlying network disconnected"
	ReasonShutdown        = "shutdown"
	ReasonInternalPrefix  = "internal error: "
)

// FormatPacket is the channel format in which a message is one IP packet.
const FormatPacket = "packet"

// FormatOffload is the channel format in which a message is a virtio-net
// header and a packet or super-packet.
const FormatOffload = "offload"
