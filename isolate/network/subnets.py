"""Which subnets a network gets: those that are asked for, or that nobody has."""

from __future__ import annotations

import ipaddress
import secrets
from typing import TYPE_CHECKING

from isolate.errors import ConflictError
from isolate.network.address import routes
from isolate.network.netlink import ROUTE, Socket
from isolate.network.words import subnet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.network.address import Net

__all__ = ["ipv4", "ipv6"]


def _taken(own: Iterable[Net]) -> Iterator[Net]:
    """Networks that this host reaches, and those of this program."""
    with Socket(ROUTE) as sock:
        for each in routes(sock):
            if each.to is not None:
                yield each.to
    yield from own


def ipv4(value: str | Net | None, own: Iterable[Net]) -> Net:
    """The IPv4 network that is wanted, or one that is free; ``own`` are those of this program."""
    if value is not None:
        wanted = subnet(value, "Network: subnet", 4)
        for other in _taken(own):
            if other.version == 4 and other.overlaps(wanted):
                raise ConflictError(
                    f"Network: {wanted} overlaps with {other}, which this host reaches or another network has:"
                    " choose another, or leave subnet out to have one chosen"
                )
        return wanted
    taken = [net for net in _taken(own) if net.version == 4]
    for second in range(88, 188):
        for third in range(256):
            wanted = ipaddress.ip_network(f"10.{second}.{third}.0/24")
            if not any(net.overlaps(wanted) for net in taken):
                return wanted
    raise ConflictError("Network: no subnet is free among 10.88.0.0 to 10.187.255.0: name one")


def ipv6(value: str | Net | bool | None, mtu: int) -> list[Net]:
    """The IPv6 network that is wanted, one at random, or none."""
    if value is False or (value in (None, True) and mtu < 1280):
        return []
    if value is None or value is True:
        return [ipaddress.IPv6Network((b"\xfd" + secrets.token_bytes(5) + bytes(10), 64))]
    if mtu < 1280:
        raise ValueError(f"Network: IPv6 needs an mtu of 1280 bytes at least, not {mtu}")
    return [subnet(value, "Network: ipv6", 6)]
