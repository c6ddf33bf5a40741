"""Network devices as netlink requests: veth pairs, bridges, up and down, counters (rtnetlink(7), RTM_NEWLINK)."""

from __future__ import annotations

import fcntl
import functools
import struct
from dataclasses import dataclass
from typing import NamedTuple

from isolate.engine.native import lib
from isolate.network.netlink import (
    CREATE,
    DUMP,
    EXCLUSIVE,
    Message,
    Socket,
    Words,
    attribute,
    attributes,
    nested,
    text,
)

__all__ = ["Counters", "Link", "bridge", "change", "counters", "forwarding", "links", "named", "remove", "veth"]

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_ADDRESS, _IFNAME, _MTU, _PEER, _MASTER, _LINKINFO, _STATS64, _AF_SPEC, _NET_NS_FD = 1, 3, 4, 5, 10, 18, 23, 26, 28
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_PEER = 1
_BR_FORWARD_DELAY, _BR_STP, _BR_MCAST_SNOOPING = 1, 5, 23
_INFO_SLAVE_DATA, _INFO_SLAVE_KIND = 5, 4
_BRPORT_LEARNING, _BRPORT_FLOODS = 8, (9, 27, 30)  # IFLA_BRPORT_…: of unicast, multicast, broadcast
_INET = 2
_INET_CONF = 1
FORWARDING, ROUTE_LOCALNET = 1, 26  # IPV4_DEVCONF_…
_UP = 1
_SIOCGIFINDEX = 0x8933
_IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg

#: The kernel's default is a queue for each processor, each with a folder in sysfs; frames between two networks go by
#: the backlog of the processor that sends them, and use none of those.
_ONE_QUEUE = attribute(31, 1) + attribute(32, 1)  # IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES
_VETH = text(_INFO_KIND, "veth")

#: Names of devices have at most so many bytes (IFNAMSIZ less its NUL).
LONGEST_NAME = 15


@dataclass(frozen=True)
class Link:
    """A device as the kernel tells of it."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    master: int
    kind: str


class Counters(NamedTuple):
    """The traffic of a device as its owner sees it: ``received`` is the traffic that came in there.

    Bytes, packets, packets that were dropped, and errors, since the device was made (rtnetlink(7), IFLA_STATS64).
    """

    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int
    received_dropped: int
    sent_dropped: int
    received_errors: int
    sent_errors: int


def _info(index: int = 0, flags: int = 0, mask: int = 0) -> bytes:
    return _IFINFO.pack(0, 0, index, flags, mask)


def mac_bytes(mac: str) -> bytes:
    """Six bytes of ``"02:00:00:00:00:01"``."""
    return bytes.fromhex(mac.replace(":", ""))


def mac_text(data: bytes) -> str:
    """``"02:00:00:00:00:01"`` of six bytes; 2 in the first says that it is administered locally."""
    return data.hex(":")


def _device(name: str, mac: str | None, mtu: int | None) -> bytes:
    parts = text(_IFNAME, name)
    if mac is not None:
        parts += attribute(_ADDRESS, mac_bytes(mac))
    if mtu is not None:
        parts += attribute(_MTU, mtu)
    return parts


def _ipv4(settings: dict[int, int]) -> bytes:
    """Settings of a device that sysctls have names for (net.ipv4.conf.DEVICE.…), by netlink and for it alone."""
    inner = b"".join(attribute(key, value) for key, value in settings.items())
    return nested(_INET, nested(_INET_CONF, inner))


@functools.lru_cache(maxsize=256)
def _peer(index: int, name: str, mtu: int | None) -> bytes:
    return _info(index) + _device(name, None, mtu) + _ONE_QUEUE


def veth(
    name: str,
    peer: str,
    namespace: int | None = None,
    *,
    index: int = 0,
    peer_index: int = 0,
    master: int = 0,
    mac: str | None = None,
    peer_mac: str | None = None,
    mtu: int | None = None,
    peer_mtu: int | None = None,
    up: bool = True,
) -> Message:
    """A veth pair in one request: this end here, set up and attached to a bridge, the other in ``namespace``."""
    # The index of the other end is 0 (the kernel chooses) or one that is free there.
    other = _peer(peer_index, peer, peer_mtu or mtu)
    if peer_mac is not None:
        other += attribute(_ADDRESS, mac_bytes(peer_mac))
    if namespace is not None:
        other += attribute(_NET_NS_FD, namespace)
    info = nested(_LINKINFO, _VETH, nested(_INFO_DATA, attribute(_VETH_PEER, other)))
    body = _info(index, _UP if up else 0, _UP if up else 0) + _device(name, mac, mtu) + _ONE_QUEUE + info
    if master:
        body += attribute(_MASTER, master)
    return Message(_NEWLINK, CREATE | EXCLUSIVE, body, Words("make the veth pair {}, {}", name, peer))


def bridge(name: str, *, index: int = 0, mac: str | None = None, mtu: int | None = None) -> Message:
    """A bridge that learns and forwards at once (no spanning tree, no snooping of multicast groups), set up."""
    data = nested(
        _INFO_DATA,
        attribute(_BR_FORWARD_DELAY, 0),
        attribute(_BR_STP, 0),
        attribute(_BR_MCAST_SNOOPING, 0, 1),
    )
    info = nested(_LINKINFO, text(_INFO_KIND, "bridge"), data)
    body = _info(index, _UP, _UP) + _device(name, mac, mtu) + info
    return Message(_NEWLINK, CREATE | EXCLUSIVE, body, f"make the bridge {name}")


def ifb(name: str, *, index: int = 0) -> Message:
    """An intermediate device, for shaping what comes in, set up."""
    body = _info(index, _UP, _UP) + _device(name, None, None) + nested(_LINKINFO, text(_INFO_KIND, "ifb"))
    return Message(_NEWLINK, CREATE | EXCLUSIVE, body, f"make the ifb device {name}")


def change(
    link: int | str,
    *,
    up: bool | None = None,
    master: int | None = None,
    name: str | None = None,
    ipv4: dict[int, int] | None = None,
    namespace: int | None = None,
    step: str | Words | None = None,
) -> Message:
    """Change a device, by its index or its name."""
    flags = _UP if up else 0
    body = _info(link if isinstance(link, int) else 0, flags, 0 if up is None else _UP)
    if isinstance(link, str):
        body += text(_IFNAME, link)
    if name is not None:
        body += text(_IFNAME, name)
    if master is not None:
        body += attribute(_MASTER, master)
    if ipv4:
        body += nested(_AF_SPEC, _ipv4(ipv4))
    if namespace is not None:
        body += attribute(_NET_NS_FD, namespace)
    return Message(_SETLINK if master is None else _NEWLINK, 0, body, step or f"change the device {link}")


def forwarding(link: int | str, on: bool = True) -> Message:
    """Forward IPv4 packets that come in by this device: what net.ipv4.conf.DEVICE.forwarding is, for it alone."""
    return change(link, ipv4={FORWARDING: int(on)}, step=f"{'forward' if on else 'no longer forward'} IPv4 from {link}")


def remove(link: int | str) -> Message:
    """Remove a device; of a veth pair both ends."""
    body = _info(link if isinstance(link, int) else 0)
    if isinstance(link, str):
        body += text(_IFNAME, link)
    return Message(_DELLINK, 0, body, f"remove the device {link}")


def _get(link: int | str | None, flags: int = 0) -> Message:
    body = _info(link if isinstance(link, int) else 0)
    if isinstance(link, str):
        body += text(_IFNAME, link)
    return Message(_GETLINK, flags, body, "look at the network devices" if link is None else f"look at {link}")


def _link(body: bytes) -> tuple[Link, dict[int, bytes]]:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attributes(body[16:])
    info = attributes(found.get(_LINKINFO, b""))
    return Link(
        index,
        found.get(_IFNAME, b"").rstrip(b"\0").decode("utf-8", "surrogateescape"),
        bool(flags & _UP),
        int.from_bytes(found.get(_MTU, b""), "little"),
        found.get(_ADDRESS, b"").hex(":"),
        int.from_bytes(found.get(_MASTER, b""), "little"),
        info.get(_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace"),
    ), found


def links(sock: Socket) -> list[Link]:
    """All devices of the socket's network."""
    return [_link(answer.body)[0] for answer in sock.ask(_get(None, DUMP)) if answer.kind == _NEWLINK]


def named(sock: Socket, link: int | str) -> Link:
    """One device.

    :raises SetupError: ENODEV.
    """
    (answer,) = (a for a in sock.ask(_get(link)) if a.kind == _NEWLINK)
    return _link(answer.body)[0]


def index_of(sock: Socket, name: str) -> int:
    """The index of a device.

    :raises OSError: ENODEV.
    """
    answer = fcntl.ioctl(sock.fileno(), _SIOCGIFINDEX, struct.pack("=16si20x", name.encode(), 0))
    return int(struct.unpack_from("=16si", answer)[1])


def settle(sock: Socket, name: str) -> None:
    """Have a device's carrier known now to all that go by it: the bridge, the queue of what it sends.

    The kernel tells them by a worker, a little later, and what comes meanwhile is dropped: a first connection then
    waits a second to try again. Who asks for the state of the link (ETHTOOL_GLINK) has the worker's part done at once.
    """
    lib.iso_netlink_settle(sock.fileno(), name.encode())


def peer_of(sock: Socket, link: int) -> int:
    """The index of the other end of a veth pair, in the network that it is in."""
    (answer,) = (a for a in sock.ask(_get(link)) if a.kind == _NEWLINK)
    return int.from_bytes(_link(answer.body)[1].get(_PEER, b""), "little")


def forwards(sock: Socket, link: int) -> bool:
    """Whether IPv4 packets that come in by a device are forwarded."""
    (answer,) = (a for a in sock.ask(_get(link)) if a.kind == _NEWLINK)
    families = attributes(_link(answer.body)[1].get(_AF_SPEC, b""))
    values = attributes(families.get(_INET, b"")).get(_INET_CONF, b"")  # a row of numbers, by their keys less 1
    return values[4 * (FORWARDING - 1) : 4 * FORWARDING] not in (b"", bytes(4))


def counters(sock: Socket, link: int | str) -> Counters:
    """Its traffic (struct rtnl_link_stats64)."""
    (answer,) = (a for a in sock.ask(_get(link)) if a.kind == _NEWLINK)
    found = _link(answer.body)[1].get(_STATS64, bytes(64))
    rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped = struct.unpack_from(
        "=8Q", found
    )
    return Counters(rx_bytes, tx_bytes, rx_packets, tx_packets, rx_dropped, tx_dropped, rx_errors, tx_errors)


def silent(port: int) -> Message:
    """A port of a bridge by which nothing is sent, and nothing learned."""
    flags = b"".join(attribute(flag, 0, 1) for flag in (_BRPORT_LEARNING, *_BRPORT_FLOODS))
    data = nested(_LINKINFO, text(_INFO_SLAVE_KIND, "bridge"), nested(_INFO_SLAVE_DATA, flags))
    return Message(_NEWLINK, 0, _info(port) + data, f"send nothing by the port {port}")
