package main

import (
	"context"
	"html"
	"log"
	"slices"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/cmd/vpn-tray/internal/model"
)

const (
	notifications = "org.freedesktop.Notifications"
	notifyLimit   = 5 * time.Second
)

// notifier shows notices by the desktop's notification server.
type notifier struct {
	bus        *godbus.Conn
	complaints *log.Logger
	queue      chan model.Notice
	server     string            // unique name of who has shown them
	ids        map[string]uint32 // its numbers, by the notice's key
}

func newNotifier(bus *godbus.Conn, complaints *log.Logger) *notifier {
	return &notifier{bus: bus, complaints: complaints, queue: make(chan model.Notice, 64), ids: make(map[string]uint32)}
}

// tell shows a notice soon. It does not wait: where the server is stuck and too
// much has come together, it is dropped.
func (n *notifier) tell(notice model.Notice) {
	select {
	case n.queue <- notice:
	default:
		n.complaints.Printf("not shown: %s", notice.Summary)
	}
}

// run shows what is told until ctx is done.
func (n *notifier) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case notice := <-n.queue:
			if err := n.send(ctx, notice); err != nil && ctx.Err() == nil {
				n.complaints.Printf("cannot show %q: %v", notice.Summary, err)
			}
		}
	}
}

func (n *notifier) send(ctx context.Context, notice model.Notice) error {
	ctx, cancel := context.WithTimeout(ctx, notifyLimit)
	defer cancel()
	server := n.bus.Object(notifications, "/org/freedesktop/Notifications")
	if notice.Kind == model.Withdraw {
		if id, ok := n.ids[notice.Key]; ok { // an error is that it is closed already, or its server gone
			_ = n.bus.Object(n.server, server.Path()).CallWithContext(ctx, notifications+".CloseNotification", 0, id)
		}
		delete(n.ids, notice.Key)
		return nil
	}
	var capabilities []string
	if err := server.CallWithContext(ctx, notifications+".GetCapabilities", 0).Store(&capabilities); err != nil {
		return err
	}
	body := notice.Body
	if slices.Contains(capabilities, "body-markup") {
		body = html.EscapeString(body)
	}
	hints := map[string]godbus.Variant{
		"desktop-entry": godbus.MakeVariant(program),
		"category":      godbus.MakeVariant("network"),
		"urgency":       godbus.MakeVariant(byte(1)),
	}
	if notice.Kind == model.Good {
		hints["transient"] = godbus.MakeVariant(true)
	}
	// That call may have started it. Another server has other numbers.
	var owner string
	if err := n.bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, notifications).Store(&owner); err != nil {
		return err
	}
	if owner != n.server {
		n.server = owner
		clear(n.ids)
	}
	var id uint32
	err := server.CallWithContext(ctx, notifications+".Notify", 0,
		"VPN", n.ids[notice.Key], "network-vpn", notice.Summary, body, []string{}, hints, int32(-1)).Store(&id)
	if err == nil {
		n.ids[notice.Key] = id
	}
	return err
}
