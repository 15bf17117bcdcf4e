package menu

import (
	"fmt"
	"maps"
	"strconv"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/nm"
	"github.com/vpnprovider/vpnproviderd/cmd/vpn-nm-bridge/internal/plugin"
	"github.com/vpnprovider/vpnproviderd/dbus/client"
)

// timeout is how long NetworkManager waits for the plugin, in seconds: a
// little more than vpnproviderd waits for an app, so that its reason is told.
const timeout uint32 = 310

// Keys of a profile's data. nmcli shows them as vpn.data.
const (
	configKey  = "config"
	appKey     = "app"
	failureKey = "failure" // why it failed last, in words: NetworkManager has only codes
)

// User is whose profiles they are.
type User struct {
	Name string
	UID  uint32
}

// face is what a profile shows, and all in which ours differ.
type face struct {
	name string
	data map[string]string
}

func (f face) equal(other face) bool { return f.name == other.name && maps.Equal(f.data, other.data) }

// faceOf reads a profile.
func faceOf(s nm.Settings) face { return face{s.String("connection", "id"), s.Data()} }

func (u User) face(config client.ConfigProperties, name, failure string) face {
	data := map[string]string{configKey: config.Path, appKey: config.App, plugin.UIDKey: strconv.FormatUint(uint64(u.UID), 10)}
	if failure != "" {
		data[failureKey] = failure
	}
	return face{name, data}
}

// settings are the profile. It is the user's alone: NetworkManager neither
// shows it to others nor lets them activate it.
func (u User) settings(uuid string, f face) nm.Settings {
	v := func(value any) godbus.Variant { return godbus.MakeVariant(value) }
	// Nothing of it is used, since the plugin brings no addresses: it says so
	// once more.
	nothing := map[string]godbus.Variant{
		"method": v("auto"), "never-default": v(true), "ignore-auto-routes": v(true), "ignore-auto-dns": v(true),
	}
	return nm.Settings{
		"connection": {
			"id": v(f.name), "uuid": v(uuid), "type": v("vpn"), "autoconnect": v(false),
			"permissions": v([]string{"user:" + u.Name + ":"}),
		},
		// Persistent: the tunnel outlives the base connection, and so does
		// what is shown of it.
		"vpn":  {"service-type": v(nm.ServiceType), "data": v(f.data), "timeout": v(timeout), "persistent": v(true)},
		"ipv4": nothing,
		"ipv6": nothing,
	}
}

// uuidOf makes a config's id, which is half a hash, the UUID of its profile:
// so a bridge that is started again knows its profiles. "" is no config.
func uuidOf(path string) string {
	const prefix = "/org/vpnprovider1/config/"
	if len(path) != len(prefix)+32 || path[:len(prefix)] != prefix {
		return ""
	}
	id := path[len(prefix):]
	if _, err := strconv.ParseUint(id[:16], 16, 64); err != nil {
		return ""
	}
	if _, err := strconv.ParseUint(id[16:], 16, 64); err != nil {
		return ""
	}
	// Version 8, "as the maker likes", of RFC 9562; its variant is 8 to b.
	variant := "89ab"[hexDigit(id[16])&3]
	return fmt.Sprintf("%s-%s-8%s-%c%s-%s", id[:8], id[8:12], id[13:16], variant, id[17:20], id[20:])
}

func hexDigit(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}
