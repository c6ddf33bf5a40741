"""A way out by IPv6 through pasta; and packets by hand, which are to reach no loopback of the host's by a switch."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import shutil
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from isolate import NetNamespace, PidNamespace, Sandbox, network
from isolate.errors import UnsupportedError
from isolate.network import way
from tests.network.hosts import Outside, connects, host, told

if TYPE_CHECKING:
    from tests.network.hosts import Host

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("pasta") is None, reason="pasta is not installed"),
]
CLIENT = """
import socket, sys
for place in sys.argv[1:]:
    try:
        socket.create_connection((place, 80), 10 if place == sys.argv[1] else 0.5).close()
        print("yes")
    except OSError as error:
        print("no")
"""


def test_the_way_out(machine: NetNamespace) -> None:
    with (
        Outside(machine) as outside,
        outside.listen(80, outside.address6),
        socket.create_server(("::1", 80), family=socket.AF_INET6),
    ):
        places = [outside.address6, "::1", way.GATEWAY6, "::ffff:127.0.0.1"]
        for ipv6, reached in ((None, "yes"), (True, "yes"), (False, "no")):
            box = Sandbox(PidNamespace(), network.Userspace(helper="pasta", ipv6=ipv6))
            result = box.run(["python3", "-c", CLIENT, *places], text=True)
            assert result.stdout.split() == [reached, "no", "no", "no"], result.stderr
        assert connects("::1", 80)  # control


def test_where_there_is_none(machine: NetNamespace) -> None:
    with pytest.raises(UnsupportedError, match="no default route of IPv6"):
        Sandbox(network.Userspace(helper="pasta", ipv6=True)).run(["true"])
    if shutil.which("slirp4netns") is not None:
        with pytest.raises(UnsupportedError, match="slirp4netns"):
            Sandbox(network.Userspace(helper="slirp4netns", ipv6=True)).run(["true"])
    with pytest.raises(TypeError, match="ipv6"):
        network.Userspace(ipv6="yes")  # type: ignore[arg-type]


def test_a_network_with_it_as_its_uplink(machine: NetNamespace) -> None:
    with Outside(machine) as outside, network.Network(uplink="user") as lan:
        assert lan.uplink6
        rules = network.Egress([f"[{outside.address6}]:80"])
        with host(lan, "free") as free, host(lan, "limited", egress=rules) as limited:
            with outside.listen(80, outside.address6), outside.listen(81, outside.address6):
                assert [free.connects(outside.address6, port, 10) for port in (80, 81)] == [True, True]
                assert [limited.connects(outside.address6, port, 10) for port in (80, 81)] == [True, False]
        with network.Network(uplink="user", ipv6=False) as other:
            assert not other.uplink6


def _sum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _opening(mac: bytes, gateway: bytes, source: str, to: str, port: int) -> bytes:
    """A frame with the first packet of a connection to port 80."""
    here, there = ipaddress.ip_address(source).packed, ipaddress.ip_address(to).packed
    head = struct.pack(">HHIIBBH", port, 80, 1, 0, 5 << 4, 2, 1024)
    check = _sum(here + there + struct.pack(">HH", 6, 20) + head + bytes(4))
    segment = head + struct.pack(">HH", check, 0)
    if len(here) == 16:
        packet, kind = struct.pack(">IHBB", 6 << 28, 20, 6, 64) + here + there + segment, 0x86DD
    else:
        ip = struct.pack(">BBHHHBB", 0x45, 0, 40, 0, 0, 64, 6)
        packet, kind = ip + struct.pack(">H", _sum(ip + bytes(2) + here + there)) + here + there + segment, 0x0800
    return gateway + mac + struct.pack(">H", kind) + packet


def test_packets_by_hand(machine: NetNamespace) -> None:
    """Those to loopback's addresses end at the switch, which is what ``Userspace`` alone does not have."""
    with Outside(machine) as outside, network.Network(uplink="user") as lan, contextlib.ExitStack() as stack:
        servers = [socket.create_server(("127.0.0.1", 80)), socket.create_server(("::1", 80), family=socket.AF_INET6)]
        servers += [outside.listen(80), outside.listen(80, outside.address6)]
        for each in servers:
            stack.enter_context(each)
        everything = network.Egress(["0.0.0.0/0", "::/0"])
        for name, egress, port in (("a", None, "br0"), ("b", everything, "r1")):
            liar = stack.enter_context(host(lan, name, egress=egress))
            (device,) = told(NetNamespace(fd=lan.namespace), "ip", "-j", "link", "show", port)
            to = bytes.fromhex(device["address"].replace(":", ""))
            with liar.net:
                raw = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
                raw.bind(("eth0", 0))

            def arrives(place: str, number: int, raw: Any = raw, liar: Host = liar, to: bytes = to) -> bool:
                source = liar.address6 if ":" in place else liar.address
                raw.send(_opening(raw.getsockname()[4], to, source, place, 5000 + number))
                wanted = servers[2:] if number < 2 else servers[:2]
                ready, _, _ = select.select(wanted, [], [], 20 if number < 2 else 0.1)
                for each in ready:
                    each.accept()[0].close()
                return bool(ready)

            places = [outside.address, outside.address6, "127.0.0.1", "127.1.2.3", "0.0.0.0"]
            places += ["::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1"]
            assert [place for i, place in enumerate(places) if arrives(place, i)] == places[:2]
