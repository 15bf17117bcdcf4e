package clienttest

import (
	"os"
	"slices"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/vpnprovider/vpnproviderd/dbus/wire"
)

// inSession locks the service for a method of a session.
func (s *Service) inSession(msg godbus.Message, method string) (*session, *godbus.Error) {
	if err := s.enter(senderOf(msg), "Session."+method); err != nil {
		return nil, err
	}
	each := s.sessions[pathOf(msg)]
	if each == nil {
		return nil, fail(wire.ErrNotFound, "there is no such session")
	}
	if p := s.providers[s.configs[each.config].app]; method != "Disconnect" && (p == nil || p.sender != string(senderOf(msg))) {
		return nil, fail(wire.ErrNotOwner, "the session belongs to another connection")
	}
	return each, nil
}

func (s *Service) sessionTable() map[string]any {
	return map[string]any{
		"SetParameters": s.setParameters, "NotifyConnectionStateChanged": s.notify,
		"Acknowledge": func(msg godbus.Message, message string, _ dict) *godbus.Error {
			defer s.mu.Unlock()
			_, err := s.inSession(msg, "Acknowledge")
			s.acks = append(s.acks, message)
			return err
		},
		"SendPacket": func(msg godbus.Message, packet []byte) *godbus.Error {
			defer s.mu.Unlock()
			each, err := s.inSession(msg, "SendPacket")
			if err == nil && len(packet) == 0 {
				err = fail(wire.ErrInvalidParameter, "the packet is empty")
			}
			if err == nil {
				each.packets = append(each.packets, packet)
			}
			return err
		},
		"OpenPacketChannel": s.openChannel, "AttachPacketChannel": s.attachChannel,
		"ProtectSocket": s.protectSocket,
		"Disconnect": func(msg godbus.Message, _ dict) *godbus.Error {
			defer s.mu.Unlock()
			each, err := s.inSession(msg, "Disconnect")
			s.end(each, "")
			return err
		},
	}
}

func (s *Service) setParameters(msg godbus.Message, parameters dict) ([]string, *godbus.Error) {
	defer s.mu.Unlock()
	each, err := s.inSession(msg, "SetParameters")
	if err != nil {
		return nil, err
	}
	if parameters["address"].Value() == nil {
		return nil, fail(wire.ErrInvalidParameter, "address is missing")
	}
	each.parameters = parameters
	state := wire.StateConfigured
	if each.notified {
		state = wire.StateConnected
	}
	s.setState(each.config, state)
	s.changed(each.path, wire.SessionInterface, "Addresses", "InclusionList", "DNSServers")
	return []string{}, nil
}

func (s *Service) notify(msg godbus.Message, state string, _ dict) *godbus.Error {
	defer s.mu.Unlock()
	each, err := s.inSession(msg, "NotifyConnectionStateChanged")
	if err != nil {
		return err
	}
	switch state {
	case wire.NotifyConnected:
		each.notified = true
		if each.state == wire.StateConfigured {
			s.setState(each.config, wire.StateConnected)
		}
	case wire.NotifyFailure:
		s.end(each, wire.ReasonProviderFailure)
	default:
		return fail(wire.ErrInvalidParameter, "unknown state %q", state)
	}
	return nil
}

// channelInfo is what is told of a channel with the options.
func (s *Service) channelInfo(options dict) (dict, *godbus.Error) {
	format, batch, maxMessage := wire.FormatPacket, uint32(128), uint32(2048)
	if v, given := options["format"]; given && v.Value() != format {
		if v.Value() != wire.FormatOffload || !slices.Contains(s.features, wire.FormatOffload) {
			return nil, fail(wire.ErrNotSupported, "format %v is not supported", v)
		}
		format, batch, maxMessage = wire.FormatOffload, 16, 10+1<<16
	}
	return dict{
		"mtu": godbus.MakeVariant(uint32(1500)), "format": godbus.MakeVariant(format),
		"batch": godbus.MakeVariant(batch), "maxMessage": godbus.MakeVariant(maxMessage),
	}, nil
}

// intercept sees calls before godbus serves them. It keeps godbus from
// answering OpenPacketChannel: only who sends the answer knows when the
// descriptor in it may be closed.
func (s *Service) intercept(msg *godbus.Message) {
	if msg.Type != godbus.TypeMethodCall {
		return
	}
	s.interactive.Store(msg.Flags&godbus.FlagAllowInteractiveAuthorization != 0)
	if msg.Headers[godbus.FieldMember].Value() == "OpenPacketChannel" {
		msg.Flags |= godbus.FlagNoReplyExpected
	}
}

func (s *Service) openChannel(msg godbus.Message, options dict) *godbus.Error {
	defer s.mu.Unlock()
	each, fault := s.inSession(msg, "OpenPacketChannel")
	var info dict
	if fault == nil {
		info, fault = s.channelInfo(options)
	}
	var pair [2]int
	if fault == nil {
		var err error
		pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			fault = fail(wire.ErrFailed, "socketpair: %v", err)
		}
	}
	reply := &godbus.Message{Type: godbus.TypeMethodReply, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant(string(senderOf(msg))),
		godbus.FieldReplySerial: godbus.MakeVariant(msg.Serial()),
	}}
	if fault != nil {
		reply.Type, reply.Body = godbus.TypeError, fault.Body
		reply.Headers[godbus.FieldErrorName] = godbus.MakeVariant(fault.Name)
	} else {
		s.setChannel(each, pair[0])
		reply.Body = []any{godbus.UnixFD(pair[1]), info}
		defer unix.Close(pair[1])
	}
	reply.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(reply.Body...))
	_ = s.conn.Send(reply, nil)
	return nil
}

func (s *Service) setChannel(each *session, fd int) {
	if each.channel != nil {
		_ = each.channel.Close()
	}
	each.channel = os.NewFile(uintptr(fd), "channel")
}

func (s *Service) attachChannel(msg godbus.Message, fd godbus.UnixFD, options dict) (dict, *godbus.Error) {
	defer s.mu.Unlock()
	each, err := s.inSession(msg, "AttachPacketChannel")
	var info dict
	if err == nil {
		info, err = s.channelInfo(options)
	}
	if err != nil {
		return nil, err
	}
	if kind, e := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE); e != nil || kind != unix.SOCK_SEQPACKET {
		_ = unix.Close(int(fd))
		return nil, fail(wire.ErrInvalidParameter, "the channel is not a SOCK_SEQPACKET socket")
	}
	_ = unix.SetNonblock(int(fd), true)
	s.setChannel(each, int(fd))
	return info, nil
}

func (s *Service) protectSocket(msg godbus.Message, fd godbus.UnixFD, _ dict) *godbus.Error {
	defer s.mu.Unlock()
	defer unix.Close(int(fd))
	if _, err := s.inSession(msg, "ProtectSocket"); err != nil {
		return err
	}
	domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_INET && domain != unix.AF_INET6 {
		return fail(wire.ErrInvalidParameter, "not an IP socket")
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(fd), &st); err != nil {
		return fail(wire.ErrFailed, "fstat: %v", err)
	}
	s.protected = append(s.protected, st.Ino)
	return nil
}
