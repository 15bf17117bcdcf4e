package dbus

import (
	"context"
	"os"
	"syscall"

	godbus "github.com/godbus/dbus/v5"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
	"github.com/vpnprovider/vpnproviderd/driver"
)

func sessionMethods() map[string]handler {
	return map[string]handler{
		"SetParameters":                setParameters,
		"NotifyConnectionStateChanged": notify,
		"Acknowledge":                  acknowledge,
		"SendPacket":                   sendPacket,
		"OpenPacketChannel":            openPacketChannel,
		"AttachPacketChannel":          attachPacketChannel,
		"CreatePacketToken":            createPacketToken,
		"ProtectSocket":                protectSocket,
		"OpenCapture":                  openCapture,
		"Disconnect":                   endSession,
	}
}

func setParameters(r *request) ([]any, error) {
	given, _ := r.body[0].(dict)
	parameters := make(map[string]any, len(given))
	for key, v := range given {
		parameters[key] = v.Value()
	}
	warnings, err := r.manager.SetParameters(r.ctx, r.caller, r.session, parameters)
	return []any{append([]string{}, warnings...)}, err
}

func notify(r *request) ([]any, error) {
	if err := r.noOptions(1); err != nil {
		return nil, err
	}
	state := r.text(0)
	if state != wire.NotifyConnected && state != wire.NotifyFailure {
		return nil, driver.Errorf(driver.KindInvalidParameter, "state %q is neither %q nor %q", state, wire.NotifyConnected, wire.NotifyFailure)
	}
	return nil, r.manager.Notify(r.caller, r.session, state == wire.NotifyConnected)
}

func acknowledge(r *request) ([]any, error) {
	if err := r.noOptions(1); err != nil {
		return nil, err
	}
	return nil, r.manager.Acknowledge(r.caller, r.session, r.text(0))
}

func sendPacket(r *request) ([]any, error) {
	packet, _ := r.body[0].([]byte)
	return nil, r.manager.SendPacket(r.caller, r.session, packet)
}

// channelFormat reads the options of a channel.
func channelFormat(o *options) (driver.ChannelFormat, error) {
	format, given := option[string](o, "format")
	switch err := o.done(); {
	case err != nil:
		return 0, err
	case given && format == wire.FormatOffload:
		return driver.FormatOffload, nil
	case given && format != wire.FormatPacket:
		return 0, driver.Errorf(driver.KindInvalidParameter, "format %q is unknown", format)
	}
	return driver.FormatPacket, nil
}

// channelInfo tells of a channel what a client needs to know: with batch, the
// largest useful number of messages a system call, and maxMessage in bytes.
func channelInfo(format driver.ChannelFormat, mtu uint32) dict {
	name, batch, maxMessage := wire.FormatPacket, uint32(128), uint32(0xffff)
	if format == driver.FormatOffload {
		// A virtio-net header is before the packet, and few fit the socket.
		name, batch, maxMessage = wire.FormatOffload, 16, 10+1<<16
	}
	return dict{
		"mtu":        godbus.MakeVariant(mtu),
		"format":     godbus.MakeVariant(name),
		"batch":      godbus.MakeVariant(batch),
		"maxMessage": godbus.MakeVariant(maxMessage),
	}
}

func openPacketChannel(r *request) ([]any, error) {
	format, err := channelFormat(r.options(0))
	if err != nil {
		return nil, err
	}
	channel, mtu, err := r.manager.OpenChannel(r.caller, r.session, format)
	if err != nil {
		return nil, err
	}
	defer channel.Close()
	fd, err := duplicate(channel)
	if err != nil {
		return nil, driver.Errorf(driver.KindFailed, "cannot pass the channel: %v", err)
	}
	return []any{fd, channelInfo(format, mtu)}, nil
}

// duplicate gives a descriptor that the reply owns: a file could be closed
// behind the back of what only knows its number.
func duplicate(f *os.File) (godbus.UnixFD, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	controlErr := raw.Control(func(own uintptr) {
		var n uintptr
		var errno syscall.Errno
		if n, _, errno = syscall.Syscall(syscall.SYS_FCNTL, own, syscall.F_DUPFD_CLOEXEC, 0); errno != 0 {
			err = errno
			return
		}
		fd = int(n)
	})
	if controlErr != nil {
		return -1, controlErr
	}
	return godbus.UnixFD(fd), err
}

func attachPacketChannel(r *request) ([]any, error) {
	format, err := channelFormat(r.options(1))
	if err != nil {
		return nil, err
	}
	channel, err := r.take(r.body[0], "channel")
	if err != nil {
		return nil, err
	}
	mtu, err := r.manager.AttachChannel(r.caller, r.session, channel, format)
	if err != nil {
		return nil, err
	}
	return []any{channelInfo(format, mtu)}, nil
}

func createPacketToken(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	token, err := r.manager.CreateToken(r.caller, r.session)
	if err != nil {
		return nil, err
	}
	return []any{token, dict{
		"seqpacket": godbus.MakeVariant(r.opts.PacketSockets.SeqPacket),
		"stream":    godbus.MakeVariant(r.opts.PacketSockets.Stream),
	}}, nil
}

func protectSocket(r *request) ([]any, error) {
	if err := r.noOptions(1); err != nil {
		return nil, err
	}
	socket, err := r.take(r.body[0], "socket")
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	return nil, r.manager.ProtectSocket(r.caller, r.session, socket)
}

// openCapture: the provider has seen the packets anyway; the user's other
// programs may have to ask. Who manages what belongs to others does not see what
// they send.
func openCapture(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	if r.caller.UID != 0 && r.caller.UID != r.objectOwner {
		return nil, driver.Errorf(driver.KindNotFound, "there is no session %d", r.session)
	}
	if !r.manager.IsProvider(r.caller, r.session) {
		if err := r.authorize(r.ctx, actionCapture); err != nil {
			return nil, err
		}
	}
	stream, err := r.manager.OpenCapture(r.caller, r.session)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	fd, err := duplicate(stream)
	if err != nil {
		return nil, driver.Errorf(driver.KindFailed, "cannot pass the stream: %v", err)
	}
	return []any{fd, dict{}}, nil
}

func endSession(r *request) ([]any, error) {
	if err := r.noOptions(0); err != nil {
		return nil, err
	}
	return nil, r.manager.EndSession(r.ctx, r.caller, r.session, func(ctx context.Context) error {
		return r.authorizeOn(ctx, r.objectOwner, actionConnect)
	})
}
