package plugin

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// User is whom the plugin runs as.
const User = "vpnprovider-nm"

// DropRoot makes the process that of an ordinary user with no rights at all
// but to the plugin's bus names. NetworkManager starts plugins as root. It
// does nothing where the process is somebody else's already.
func DropRoot(name string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("cannot give up root: %w", err)
	}
	uid, uidErr := strconv.Atoi(u.Uid)
	gid, gidErr := strconv.Atoi(u.Gid)
	if uidErr != nil || gidErr != nil || uid == 0 || gid == 0 {
		return fmt.Errorf("cannot give up root: the user %s is %s:%s", name, u.Uid, u.Gid)
	}
	// Groups first: afterwards it would not be allowed.
	if err := syscall.Setgroups([]int{gid}); err != nil {
		return fmt.Errorf("cannot give up root's groups: %w", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("cannot give up root's group: %w", err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("cannot give up root: %w", err)
	}
	return nil
}

// loopback is 127.0.0.1 as NetworkManager passes IPv4 addresses: the bytes of
// the wire in a number of this machine's.
func loopback() uint32 { return binary.NativeEndian.Uint32([]byte{127, 0, 0, 1}) }
