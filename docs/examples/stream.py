#!/usr/bin/python3
"""A VPN app without descriptors: its channel is a stream that it brings with a
token. What is sent to 198.18.0.0/24 comes back with its two addresses exchanged.
"""
import socket
from collections import deque
from contextlib import suppress

from jeepney import DBusAddress, HeaderFields, MatchRule, message_bus, new_method_call
from jeepney.io.blocking import Proxy, open_dbus_connection
from jeepney.wrappers import unwrap_msg

NAME, ROOT, APP = "org.vpnprovider1", "/org/vpnprovider1", "com.example.StreamPy"
bus = open_dbus_connection("SYSTEM")


def call(path, interface, method, signature, *args):
    address = DBusAddress(path, NAME, f"{NAME}.{interface}")
    return unwrap_msg(bus.send_and_get_reply(new_method_call(address, method, signature, args)))


def carry(session):
    """Serves one session, from its platform message `connected` to its end."""
    call(session, "Session", "SetParameters", "a{sv}", {
        "address": ("s", "198.18.0.2/24"), "inclusionList": ("as", ["198.18.0.0/24"])})
    token, sockets = call(session, "Session", "CreatePacketToken", "a{sv}", {})
    with socket.socket(socket.AF_UNIX) as channel, channel.makefile("rb") as packets:
        channel.connect(sockets["stream"][1])
        channel.sendall(token.encode() + b"\n")
        if packets.readline() != b"ok\n":
            raise SystemExit("the token was refused")
        call(session, "Session", "NotifyConnectionStateChanged", "sa{sv}", "connected", {})
        while head := packets.read(2):  # the length of a packet; b"": disconnected
            p = packets.read(int.from_bytes(head, "big"))
            if p and p[0] >> 4 == 4:
                channel.sendall(head + p[:12] + p[16:20] + p[12:16] + p[20:])


call(ROOT, "Manager", "ListProviders", "")  # starts the service where it is not running
owner = Proxy(message_bus, bus).GetNameOwner(NAME)[0]  # anyone can send us a signal
with bus.filter(MatchRule(type="signal", sender=owner, member="PlatformMessage"), queue=deque()) as messages:
    call(ROOT, "Manager", "RegisterProvider", "sa{sv}", APP, {})
    if not any(config[1] == APP for config in call(ROOT, "Manager", "ListConfigs", "")[0]):
        call(ROOT, "Manager", "CreateConfig", "ssa{sv}", APP, "StreamPy", {})
    while message := bus.recv_until_filtered(messages):
        if message.body[1] == "connected":
            with suppress(OSError):  # it ended while we were writing
                carry(message.header.fields[HeaderFields.path])
