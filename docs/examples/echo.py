#!/usr/bin/python3
"""A VPN app in Python: what is sent to 198.18.0.0/24 comes back with its two
addresses exchanged, so that the host itself answers there. It needs
python3-jeepney and no privilege.
"""
from collections import deque
from contextlib import suppress

from jeepney import DBusAddress, DBusErrorResponse, HeaderFields, MatchRule, message_bus, new_method_call
from jeepney.io.blocking import Proxy, open_dbus_connection
from jeepney.wrappers import unwrap_msg

NAME, ROOT, APP = "org.vpnprovider1", "/org/vpnprovider1", "com.example.EchoPy"
bus = open_dbus_connection("SYSTEM", enable_fds=True)


def call(path, interface, method, signature, *args):
    address = DBusAddress(path, NAME, f"{NAME}.{interface}")
    return unwrap_msg(bus.send_and_get_reply(new_method_call(address, method, signature, args)))


def carry(session):
    """Serves one session, from its platform message `connected` to its end."""
    call(session, "Session", "SetParameters", "a{sv}", {
        "address": ("s", "198.18.0.2/24"), "inclusionList": ("as", ["198.18.0.0/24"])})
    channel, info = call(session, "Session", "OpenPacketChannel", "a{sv}", {})
    with channel.to_socket() as packets:
        packets.setblocking(True)
        call(session, "Session", "NotifyConnectionStateChanged", "sa{sv}", "connected", {})
        while p := packets.recv(info["maxMessage"][1]):  # one IP packet; b"": disconnected
            if p[0] >> 4 == 4:
                packets.send(p[:12] + p[16:20] + p[12:16] + p[20:])


def main():
    call(ROOT, "Manager", "ListProviders", "")  # starts the service where it is not running
    # Anyone can send us a signal: only those of the service count.
    driver, signals = Proxy(message_bus, bus), deque()
    ours = MatchRule(type="signal", sender=driver.GetNameOwner(NAME)[0])
    gone = MatchRule(type="signal", sender="org.freedesktop.DBus", member="NameOwnerChanged")
    gone.add_arg_condition(0, NAME)
    driver.AddMatch(gone)
    with bus.filter(ours, queue=signals), bus.filter(gone, queue=signals):
        call(ROOT, "Manager", "RegisterProvider", "sa{sv}", APP, {"displayName": ("s", "Echo in Python")})
        if not any(config[1] == APP for config in call(ROOT, "Manager", "ListConfigs", "")[0]):
            call(ROOT, "Manager", "CreateConfig", "ssa{sv}", APP, "EchoPy", {})
        while (signal := bus.recv_until_filtered(signals)).header.fields[HeaderFields.member] != "NameOwnerChanged":
            if signal.header.fields[HeaderFields.member] == "PlatformMessage" and signal.body[1] == "connected":
                session = signal.header.fields[HeaderFields.path]
                try:
                    carry(session)
                except (DBusErrorResponse, OSError) as error:  # refused, or ended meanwhile
                    print(error, flush=True)
                    with suppress(DBusErrorResponse):
                        call(session, "Session", "NotifyConnectionStateChanged", "sa{sv}", "failure", {})
    raise SystemExit("vpnproviderd is gone")  # and with it the session: start again, register again


if __name__ == "__main__":
    main()
