"""Addresses, routes and neighbours as netlink requests (rtnetlink(7))."""

from __future__ import annotations

import ipaddress
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from isolate.network.netlink import (
    CREATE,
    DUMP,
    EXCLUSIVE,
    REPLACE,
    Message,
    Socket,
    Words,
    attribute,
    attributes,
    nested,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Address",
    "Interface",
    "Net",
    "Route",
    "add",
    "addresses",
    "forwards6",
    "local",
    "neighbour",
    "route",
    "routes",
    "until_found",
    "way_back",
]

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"
Net: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"
Interface: TypeAlias = "ipaddress.IPv4Interface | ipaddress.IPv6Interface"

_NEWADDR, _DELADDR, _GETADDR, _GETMULTICAST = 20, 21, 22, 58
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEIGH, _DELNEIGH, _SETNEIGHTBL = 28, 29, 67
_NDTA_NAME, _NDTA_PARMS, _NDTPA_IFINDEX, _NDTPA_PROXY_DELAY = 1, 6, 1, 13
_PROXY = 8
_NEWNETCONF, _GETNETCONF = 80, 82
_IFA_ADDRESS, _IFA_LOCAL, _IFA_MULTICAST, _IFA_FLAGS = 1, 2, 7, 8
_AT_ONCE = attribute(_IFA_FLAGS, 0x02)  # IFA_F_NODAD
_RTA_TABLE, _OWN_TABLES = 15, 1000
_NEWRULE, _TO_TABLE, _FRA_SRC, _FRA_PRIORITY, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE = 32, 1, 2, 6, 14, 15
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_NDA_DST, _NDA_LLADDR = 1, 2
_MAIN, _BOOT, _STATIC, _UNICAST, _BLACKHOLE = 254, 3, 4, 1, 6
_LINK_SCOPE, _UNIVERSE = 253, 0
_LOCAL, _LOCAL_TABLE, _HOST_SCOPE = 2, 255, 254
_PERMANENT = 0x80
_IFADDR = struct.Struct("=BBBBi")  # struct ifaddrmsg
_RTMSG = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_NDMSG = struct.Struct("=BxxxiHBB")  # struct ndmsg


def _family(value: Address | Net | Interface) -> int:
    return 2 if value.version == 4 else 10


def add(index: int, interface: Interface) -> Message:
    """Give a device an address. An IPv6 address is used at once: whoever gives it out knows that it is the only one."""
    return given(index, interface.ip, interface.network.prefixlen)


def given(index: int, own: Address, length: int) -> Message:
    """The same, of an address and the length of its prefix."""
    if own.version == 4:
        body = _IFADDR.pack(2, length, 0, 0, index) + attribute(_IFA_LOCAL, own.packed)
    else:
        body = _IFADDR.pack(10, length, 0, 0, index) + attribute(_IFA_LOCAL, own.packed) + _AT_ONCE
    return Message(
        _NEWADDR, CREATE | EXCLUSIVE, body, Words("give the device {} the address {}/{}", index, own, length)
    )


def route(
    to: Net | None, *, index: int, via: Address | None = None, version: int = 4, metric: int | None = None
) -> Message:
    """A route to a network (None: everywhere) by a device, or by a neighbour behind it. The lowest metric is taken."""
    version = to.version if to is not None else via.version if via is not None else version
    length = to.prefixlen if to is not None else 0
    scope = _UNIVERSE if via is not None or version == 6 else _LINK_SCOPE
    body = _RTMSG.pack(2 if version == 4 else 10, length, 0, 0, _MAIN, _STATIC, scope, _UNICAST, 0)
    if to is not None:
        body += attribute(_RTA_DST, to.network_address.packed)
    if via is not None:
        body += attribute(_RTA_GATEWAY, via.packed)
    body += attribute(_RTA_OIF, index)
    if metric is not None:
        body += attribute(_RTA_PRIORITY, metric)
    by = via or Words("the device {}", index)
    return Message(_NEWROUTE, CREATE | EXCLUSIVE, body, Words("route {} by {}", to or "everything", by))


def way_back(own: Address, via: Address, *, index: int) -> list[Message]:
    """What is sent beyond with this address leaves by its own device, whatever the way out is else (ip-rule(8)).

    Of several interfaces one is the way out. Who came from beyond by another one is answered by that.
    """
    table = _OWN_TABLES + index
    body = _RTMSG.pack(_family(own), 0, 0, 0, 0, _STATIC, _UNIVERSE, _UNICAST, 0) + attribute(_RTA_TABLE, table)
    body += attribute(_RTA_GATEWAY, via.packed) + attribute(_RTA_OIF, index)
    here = attribute(_FRA_SUPPRESS_PREFIXLEN, 0)  # the routes of the main table, but for the one to everywhere
    return [
        Message(_NEWROUTE, CREATE | REPLACE, body, Words("route everything by {} in a table of its own", via)),
        _rule(own, _MAIN, 1000, here),
        _rule(own, table, 1001),
    ]


def _rule(own: Address, table: int, priority: int, more: bytes = b"") -> Message:
    """Look at this table for what is sent with an address."""
    body = struct.pack("=BBBBBxxBI", _family(own), 0, own.max_prefixlen, 0, 0, _TO_TABLE, 0)
    body += attribute(_FRA_SRC, own.packed) + attribute(_FRA_TABLE, table) + attribute(_FRA_PRIORITY, priority) + more
    return Message(_NEWRULE, CREATE, body, Words("use the table {} for what has the address {}", table, own))


def local(net: Net, *, index: int = 1) -> Message:
    """Every address of a network is this host's own: what is sent there arrives here (ip-route(8), type local).

    The kernel adds such a route for each address of a device: for IPv4 at once, for IPv6 by a worker. Until that has
    run, a program may send with the address, and the answer is dropped. On a busy machine that is long enough for a
    first connection, which then waits a second. A route from here is there at once, and the kernel's goes before it.
    """
    body = _RTMSG.pack(
        2 if net.version == 4 else 10, net.prefixlen, 0, 0, _LOCAL_TABLE, _STATIC, _HOST_SCOPE, _LOCAL, 0
    )
    body += attribute(_RTA_DST, net.network_address.packed) + attribute(_RTA_OIF, index)
    return Message(_NEWROUTE, CREATE | EXCLUSIVE, body, f"take {net} for this host's own")


def neighbour(index: int, address: Address, mac: bytes) -> Message:
    """A neighbour whose hardware address is known, for good."""
    body = _NDMSG.pack(_family(address), index, _PERMANENT, 0, 0)
    body += attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, mac)
    return Message(_NEWNEIGH, CREATE | REPLACE, body, f"note that {address} is at {mac.hex(':')}")


def proxy(index: int, address: Address, *, remove: bool = False) -> Message:
    """Answer for a neighbour that is behind another device (ARP's proxy), or no longer.

    The kernel forgets it when the device loses its carrier.
    """
    body = _NDMSG.pack(_family(address), index, 0, _PROXY, 0) + attribute(_NDA_DST, address.packed)
    verb = "no longer answer" if remove else "answer"
    step = f"{verb} for {address} on the device {index}"
    return Message(_DELNEIGH if remove else _NEWNEIGH, 0 if remove else CREATE | REPLACE, body, step)


def proxy_at_once(index: int, version: int = 4) -> Message:
    """Answers for others are given at once: the kernel's default is a random delay of up to 0.8 s."""
    inner = attribute(_NDTPA_IFINDEX, index) + attribute(_NDTPA_PROXY_DELAY, 0, 8)
    family, name = (2, "arp_cache") if version == 4 else (10, "ndisc_cache")
    body = struct.pack("=Bxxx", family) + text(_NDTA_NAME, name) + nested(_NDTA_PARMS, inner)
    return Message(_SETNEIGHTBL, 0, body, f"answer for others at once on the device {index}")


@dataclass(frozen=True)
class Given:
    """An address that a device has."""

    index: int
    interface: Interface


@dataclass(frozen=True)
class Route:
    """A route of the main table: None as ``to`` is everywhere."""

    to: Net | None
    via: Address | None
    index: int
    version: int = 4


def forwards6(sock: Socket) -> bool:
    """Whether IPv6 is forwarded in the socket's network: by all devices or by none (RTM_GETNETCONF)."""
    body = struct.pack("=Bxxx", 10) + attribute(1, 0xFFFFFFFF)  # NETCONFA_IFINDEX: all
    for answer in sock.ask(Message(_GETNETCONF, 0, body, "ask whether IPv6 is forwarded")):
        if answer.kind == _NEWNETCONF:
            return attributes(answer.body[4:]).get(2, bytes(4)) != bytes(4)  # NETCONFA_FORWARDING
    return False


def addresses(sock: Socket) -> list[Given]:
    """All addresses in the socket's network."""
    found = []
    for answer in sock.ask(Message(_GETADDR, DUMP, _IFADDR.pack(0, 0, 0, 0, 0), "look at the addresses")):
        if answer.kind != _NEWADDR or len(answer.body) < 8:
            continue
        _, length, _, _, index = _IFADDR.unpack_from(answer.body)
        parts = attributes(answer.body[8:])
        packed = parts.get(_IFA_LOCAL) or parts.get(_IFA_ADDRESS)
        if packed and len(packed) in (4, 16):
            found.append(Given(index, ipaddress.ip_interface((packed, length))))
    return found


def until_found(sock: Socket, wanted: Iterable[Address]) -> None:
    """Wait until questions about these IPv6 addresses of the socket's network are answered there.

    The kernel joins the group that such questions go to by a worker, a little after the address was given. A question
    that comes before is lost, and the next one is sent a second later. After some seconds the wait is given up.
    """
    groups = {b"\xff\x02" + bytes(9) + b"\1\xff" + each.packed[-3:] for each in wanted if each.version == 6}
    asking = Message(_GETMULTICAST, DUMP, _IFADDR.pack(10, 0, 0, 0, 0), "look at the groups of IPv6")
    deadline = time.monotonic() + 5
    while groups and time.monotonic() < deadline:
        groups -= {attributes(answer.body[8:]).get(_IFA_MULTICAST, b"") for answer in sock.ask(asking)}
        if groups:
            time.sleep(0.001)


def routes(sock: Socket) -> list[Route]:
    """The routes of the main tables."""
    found: list[Route] = []
    for answer in sock.ask(Message(_GETROUTE, DUMP, _RTMSG.pack(*[0] * 9), "look at the routes")):
        if answer.kind != _NEWROUTE or len(answer.body) < 12:
            continue
        family, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(answer.body)
        parts = attributes(answer.body[12:])
        if table != _MAIN or kind != _UNICAST or family not in (2, 10):
            continue
        size = 4 if family == 2 else 16
        to = parts.get(_RTA_DST, bytes(size))
        via = parts.get(_RTA_GATEWAY)
        found.append(
            Route(
                ipaddress.ip_network((to, length)) if length else None,
                ipaddress.ip_address(via) if via else None,
                int.from_bytes(parts.get(_RTA_OIF, b""), "little"),
                4 if family == 2 else 6,
            )
        )
    return found
