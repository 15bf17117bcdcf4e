package nm

import (
	"context"
	"errors"
	"fmt"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/stream"
)

// callTime bounds each call: NetworkManager answers at once or never.
const callTime = 10 * time.Second

// Flags of AddConnection2 and Update2.
const (
	toMemory         uint32 = 0x2 // not to the disk
	blockAutoconnect uint32 = 0x20
)

// Client is one connection to the bus. Its methods may be called from any
// goroutine. NetworkManager need not run.
type Client struct {
	conn    *godbus.Conn
	signals chan *godbus.Signal // NetworkManager's, and those of the bus itself
	manager manager
}

// Dial connects to the bus at an address; "" is the system bus. ctx bounds Dial
// alone.
func Dial(ctx context.Context, address string) (*Client, error) {
	c := &Client{signals: make(chan *godbus.Signal, 64)}
	inOrder := handler{godbus.NewSequentialSignalHandler().(queue), &c.manager}
	s := stream.New(stream.Options{Signal: func(h stream.Header) bool { return c.manager.is(h.Sender) }})
	var err error
	if c.conn, err = s.Open(ctx, address, godbus.WithSignalHandler(inOrder)); err != nil {
		return nil, fmt.Errorf("cannot reach the bus: %w", err)
	}
	c.conn.Signal(c.signals)
	for _, match := range matches() {
		if err := c.conn.AddMatchSignalContext(ctx, match...); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot watch NetworkManager: %w", err), c.conn.Close())
		}
	}
	var owner string // an error is that there is none
	call := c.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, BusName)
	_ = call.Store(&owner)
	c.manager.became(owner, call.ResponseSequence)
	return c, nil
}

// Close leaves the bus, and ends Watch.
func (c *Client) Close() error { return c.conn.Close() }

// Running says whether NetworkManager is on the bus.
func (c *Client) Running() bool { return c.manager.name() != "" }

// Profiles are those of ServiceType that the user may see, by path.
func (c *Client) Profiles(ctx context.Context) (map[godbus.ObjectPath]Settings, error) {
	var paths []godbus.ObjectPath
	if err := c.call(ctx, settingsPath, settingsInterface+".ListConnections", nil, &paths); err != nil {
		return nil, fmt.Errorf("cannot list profiles: %w", err)
	}
	found := make(map[godbus.ObjectPath]Settings)
	for _, path := range paths {
		var s Settings
		// Another user's is refused, and one may have gone meanwhile.
		if err := c.call(ctx, path, profileInterface+".GetSettings", nil, &s); err != nil {
			continue
		}
		if s.String("connection", "type") == "vpn" && s.String("vpn", "service-type") == ServiceType {
			found[path] = s
		}
	}
	return found, nil
}

// AddProfile adds a profile that is never written to the disk.
func (c *Client) AddProfile(ctx context.Context, s Settings) (godbus.ObjectPath, error) {
	var path godbus.ObjectPath
	var rest map[string]godbus.Variant
	args := []any{s, toMemory | blockAutoconnect, map[string]godbus.Variant{}}
	if err := c.call(ctx, settingsPath, settingsInterface+".AddConnection2", args, &path, &rest); err != nil {
		return "", fmt.Errorf("cannot add the profile %q: %w", s.String("connection", "id"), err)
	}
	return path, nil
}

// UpdateProfile replaces a profile. What it is active with stays.
func (c *Client) UpdateProfile(ctx context.Context, path godbus.ObjectPath, s Settings) error {
	var rest map[string]godbus.Variant
	args := []any{s, toMemory | blockAutoconnect, map[string]godbus.Variant{}}
	if err := c.call(ctx, path, profileInterface+".Update2", args, &rest); err != nil {
		return fmt.Errorf("cannot update the profile %q: %w", s.String("connection", "id"), err)
	}
	return nil
}

// DeleteProfile removes a profile. Where it is active, that ends.
func (c *Client) DeleteProfile(ctx context.Context, path godbus.ObjectPath) error {
	if err := c.call(ctx, path, profileInterface+".Delete", nil); err != nil {
		return fmt.Errorf("cannot delete a profile: %w", err)
	}
	return nil
}

// Activate activates a profile.
func (c *Client) Activate(ctx context.Context, profile godbus.ObjectPath) (godbus.ObjectPath, error) {
	var active godbus.ObjectPath
	args := []any{profile, godbus.ObjectPath("/"), godbus.ObjectPath("/")}
	if err := c.call(ctx, managerPath, managerInterface+".ActivateConnection", args, &active); err != nil {
		return "", fmt.Errorf("cannot activate a profile: %w", err)
	}
	return active, nil
}

// Deactivate ends an activation.
func (c *Client) Deactivate(ctx context.Context, active godbus.ObjectPath) error {
	if err := c.call(ctx, managerPath, managerInterface+".DeactivateConnection", []any{active}); err != nil {
		return fmt.Errorf("cannot deactivate a profile: %w", err)
	}
	return nil
}

// Activations are those of VPN profiles, of whatever type and user.
func (c *Client) Activations(ctx context.Context) ([]Active, error) {
	var paths godbus.Variant
	args := []any{managerInterface, "ActiveConnections"}
	if err := c.call(ctx, managerPath, "org.freedesktop.DBus.Properties.Get", args, &paths); err != nil {
		return nil, fmt.Errorf("cannot list what is active: %w", err)
	}
	list, _ := paths.Value().([]godbus.ObjectPath)
	return c.Read(ctx, list), nil
}

// Read reads those of the activations that are VPNs and still there.
func (c *Client) Read(ctx context.Context, paths []godbus.ObjectPath) []Active {
	var found []Active
	for _, path := range paths {
		var general, vpn map[string]godbus.Variant
		if c.call(ctx, path, "org.freedesktop.DBus.Properties.GetAll", []any{activeInterface}, &general) != nil {
			continue
		}
		if is, _ := general["Vpn"].Value().(bool); !is {
			continue
		}
		if c.call(ctx, path, "org.freedesktop.DBus.Properties.GetAll", []any{vpnInterface}, &vpn) != nil {
			continue
		}
		a := Active{Path: path}
		a.UUID, _ = general["Uuid"].Value().(string)
		state, _ := general["State"].Value().(uint32)
		detail, _ := vpn["VpnState"].Value().(uint32)
		a.State, a.VPN = ActiveState(state), VPNState(detail)
		found = append(found, a)
	}
	return found
}

func (c *Client) call(ctx context.Context, path godbus.ObjectPath, method string, args []any, results ...any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	// It is not for us to start it.
	return c.conn.Object(BusName, path).CallWithContext(ctx, method, godbus.FlagNoAutoStart, args...).Store(results...)
}
