package main

import (
	"bytes"
	"encoding/binary"
	"io"
)

// answer is the IPv4 address of every name behind the tunnel.
var answer = [4]byte{10, 8, 8, 8}

// serveDNS answers the questions that come through the tunnel, until it ends.
func serveDNS(channel io.ReadWriter) error {
	packet := make([]byte, 65536)
	for {
		n, err := channel.Read(packet)
		if err != nil {
			return err
		}
		if reply := replyTo(packet[:n]); reply != nil {
			if _, err := channel.Write(reply); err != nil {
				return err
			}
		}
	}
}

// replyTo makes the reply to a DNS question in a UDP packet of IPv4: the
// address for a question of type A, no record for others. nil: it is none.
func replyTo(packet []byte) []byte {
	const ip, udp, header, port = 20, 8, 12, 53
	if len(packet) < ip+udp+header || packet[0] != 0x45 || packet[9] != 17 || binary.BigEndian.Uint16(packet[ip+2:]) != port {
		return nil
	}
	message := packet[ip+udp:]
	end := bytes.IndexByte(message[header:], 0)
	if end < 0 || len(message) < header+end+5 {
		return nil
	}
	question := message[header : header+end+5]
	isA := binary.BigEndian.Uint16(question[end+1:]) == 1

	reply := bytes.Clone(packet[:ip+udp])
	reply = append(reply, message[0], message[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0)
	reply = append(reply, question...)
	if isA {
		reply[ip+udp+7] = 1
		reply = append(reply, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
		reply = append(reply, answer[:]...)
	}
	copy(reply[12:16], packet[16:20])
	copy(reply[16:20], packet[12:16])
	copy(reply[ip:], packet[ip+2:ip+4])
	copy(reply[ip+2:], packet[ip:ip+2])
	binary.BigEndian.PutUint16(reply[2:], uint16(len(reply)))
	binary.BigEndian.PutUint16(reply[ip+4:], uint16(len(reply)-ip))
	binary.BigEndian.PutUint16(reply[ip+6:], 0) // UDP without a checksum
	binary.BigEndian.PutUint16(reply[10:], 0)
	binary.BigEndian.PutUint16(reply[10:], checksum(reply[:ip]))
	return reply
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
