// Package nm speaks with NetworkManager: the few calls and signals that the
// bridge needs, on its documented D-Bus interfaces.
//
// NetworkManager checks for each call whether the caller's user may do it, so
// all here is done with the rights of whoever runs the program.
package nm

import godbus "github.com/godbus/dbus/v5"

// ServiceType is that of our VPN profiles: the name of the plugin in
// vpn-nm-bridge.name, and the beginning of the bus names of its processes.
const ServiceType = BusName + ".vpnprovider"

// BusName is NetworkManager's.
const BusName = "org.freedesktop.NetworkManager"

const (
	managerPath  godbus.ObjectPath = "/org/freedesktop/NetworkManager"
	settingsPath                   = managerPath + "/Settings"

	managerInterface  = BusName
	settingsInterface = BusName + ".Settings"
	profileInterface  = BusName + ".Settings.Connection"
	activeInterface   = BusName + ".Connection.Active"
	vpnInterface      = BusName + ".VPN.Connection"
)

// ActiveState is how far an activation of a profile is.
type ActiveState uint32

// States of an activation.
const (
	Activating   ActiveState = 1
	Activated    ActiveState = 2
	Deactivating ActiveState = 3
	Deactivated  ActiveState = 4
)

// VPNState is the same in more detail, for a VPN.
type VPNState uint32

// VPNConnecting says that the plugin runs and was told to connect. The states
// before and after it matter to nobody here.
const VPNConnecting VPNState = 3

// Reason says why an activation ended.
type Reason uint32

// Reasons, as far as they are told apart.
const (
	UserDisconnected    Reason = 2
	ConnectTimeout      Reason = 6
	ServiceStartTimeout Reason = 7
	ProfileRemoved      Reason = 11
)

// Settings are a profile, as sections of keys.
type Settings map[string]map[string]godbus.Variant

// String is a value of a section, "" where there is none.
func (s Settings) String(section, key string) string {
	text, _ := s[section][key].Value().(string)
	return text
}

// Data are the values that a VPN profile has for its plugin.
func (s Settings) Data() map[string]string {
	data, _ := s["vpn"]["data"].Value().(map[string]string)
	return data
}

// Active is one activation of a VPN profile. It is named by Path.
type Active struct {
	Path  godbus.ObjectPath
	UUID  string // of the profile
	State ActiveState
	VPN   VPNState
}
