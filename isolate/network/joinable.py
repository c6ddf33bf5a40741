"""The interface of a network to its members: of this program's own networks and of others'."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isolate.engine.handing import Taker
    from isolate.network.address import Address, Net
    from isolate.network.members import Wish

__all__ = ["Joinable"]


class Joinable:
    """The base of :class:`Network` and :class:`Shared`."""

    #: The IPv4 network of its members.
    subnet: Net
    #: Their IPv6 network, or None.
    subnet6: Net | None
    #: The largest packet, in bytes.
    mtu: int

    @property
    def nameservers(self) -> list[Address]:
        """The resolvers of its members."""
        raise NotImplementedError

    def reserve(self, wish: Wish) -> Taker:
        """A place for a new member, until it is closed."""
        raise NotImplementedError
