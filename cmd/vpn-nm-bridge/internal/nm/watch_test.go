package nm

import (
	"context"
	"os"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"go.uber.org/goleak"

	"github.com/vpnprovider/vpnproviderd/dbus/client/clienttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeout = 10 * time.Second

// join is another's connection to the bus.
func join(t *testing.T, address string) *godbus.Conn {
	t.Helper()
	conn, err := godbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// manage has a connection be NetworkManager.
func manage(t *testing.T, conn *godbus.Conn) {
	t.Helper()
	if reply, err := conn.RequestName(BusName, godbus.NameFlagDoNotQueue); err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
}

// What NetworkManager says is told, over its restart, and what anybody else
// says is not; nor does it end the connection.
func TestWatch(t *testing.T) {
	address := clienttest.Bus(t)
	first, second, stranger := join(t, address), join(t, address), join(t, address)
	manage(t, first)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	c, err := Dial(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !c.Running() {
		t.Error("NetworkManager is not seen")
	}
	events := make(chan Event)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.Watch(ctx, events)
	}()
	expect := func(kind EventKind, path godbus.ObjectPath) {
		t.Helper()
		select {
		case e := <-events:
			if e.Kind != kind || e.Path != path {
				t.Errorf("got %+v, want %d %s", e, kind, path)
			}
		case <-ctx.Done():
			t.Fatalf("%d %s is not told", kind, path)
		}
	}
	added := func(from *godbus.Conn, path godbus.ObjectPath) {
		t.Helper()
		if err := from.Emit(settingsPath, settingsInterface+".NewConnection", path); err != nil {
			t.Fatal(err)
		}
	}

	added(first, "/1")
	expect(ProfileAdded, "/1")
	self := c.conn.Names()[0]
	pipe, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer other.Close()
	for _, body := range []any{godbus.ObjectPath("/stranger"), []godbus.UnixFD{godbus.UnixFD(pipe.Fd())}} {
		if err := Signal(stranger, self, settingsPath, settingsInterface+".NewConnection", body); err != nil {
			t.Fatal(err)
		}
	}
	if err := Signal(stranger, self, "/org/freedesktop/DBus", "org.freedesktop.DBus.NameOwnerChanged", BusName, "", stranger.Names()[0]); err != nil {
		t.Fatal(err)
	}
	// The bus has passed all that on when it answers.
	if err := stranger.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
		t.Fatal(err)
	}
	added(first, "/2")
	expect(ProfileAdded, "/2")

	_ = first.Close()
	expect(Stopped, "")
	if c.Running() {
		t.Error("NetworkManager that has gone is there")
	}
	manage(t, second)
	expect(Started, "")
	added(second, "/3")
	expect(ProfileAdded, "/3")
	_ = c.Close()
	select {
	case <-ended:
	case <-ctx.Done():
		t.Error("it watches without a connection")
	}
}
