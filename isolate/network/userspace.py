"""``Userspace``: a way out without root, by a program that speaks for the sandbox with sockets of its own."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isolate.capabilities import Cap, Capabilities
from isolate.engine.handing import Handing
from isolate.engine.ops import Register
from isolate.engine.plan import Phase, Step
from isolate.errors import ConflictError
from isolate.kernel.checks import is_int, keywords
from isolate.mounts import File
from isolate.namespaces import NetNamespace
from isolate.network import resolv
from isolate.network.inside import LISTENING, all_ports, check_own, netlink_socket
from isolate.network.interface import Interface
from isolate.network.keeper import HINTS, Bound
from isolate.network.way import HELPERS, NAMESERVER, Way
from isolate.network.words import Publish, PublishLike, publications

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context

__all__ = ["Userspace"]

_DNS = 53


@keywords
@dataclass(frozen=True, init=False)
class Userspace:
    """A way out for one sandbox that needs no privileges: pasta, or slirp4netns where that is what is installed.

    The sandbox reaches what this program reaches, by TCP, UDP and ping, but not the host's loopback. ``publish`` has
    ports of the host's lead to it, as for :class:`Interface`. ``helper`` names the program, instead of the first that
    is there. ``ipv6``: None is by IPv6 too where this program has a way out by it and the helper is pasta; True is an
    error where that is not so; False is IPv4 alone. ``mtu`` is the largest packet inside. Names are asked for at
    10.0.2.3, where this program listens and asks the host's resolvers, by IPv4 or IPv6, the next one where one says
    nothing.

    Anything that listens at another address of the host's than loopback can be reached: for less use ``Domains``.
    These helpers take what arrives for an address of loopback as meant for the host's. A table of nftables in the
    sandbox's network lets none out, and only a program with CAP_NET_RAW or CAP_NET_ADMIN could get around it. So a
    sandbox with :class:`Capabilities` that hold one of them is refused: leave both out, or have a
    ``Network(uplink="user")`` and an :class:`Interface`, whose switch drops such packets. ``raw_packets=True`` accepts
    that the program can reach the host's loopback by them. The helper runs as this program's user, outside of the
    sandbox, and ends with it.

    Brings a network namespace. Needs ``/dev/net/tun``, nf_tables, and pasta or slirp4netns (0.4.0 or later).

    :raises ConflictError: the program keeps CAP_NET_RAW or CAP_NET_ADMIN.
    :raises UnsupportedError: neither is installed, or it is too old.
    """

    publish: tuple[Publish, ...]
    helper: str | None
    mtu: int
    ipv6: bool | None
    raw_packets: bool

    device: ClassVar[str] = "tap0"

    def __init__(
        self,
        *,
        publish: PublishLike = (),
        helper: str | None = None,
        mtu: int = 1500,
        ipv6: bool | None = None,
        raw_packets: bool = False,
    ) -> None:
        if helper is not None and helper not in HELPERS:
            raise ValueError(f"Userspace: helper must be 'pasta' or 'slirp4netns', not {helper!r}")
        if any(each.version == 6 for each in publications(publish)):
            raise ValueError("Userspace: publish takes IPv4 addresses of the host; a Network with uplink='user' both")
        if not is_int(mtu) or not 576 <= mtu <= 65521:
            raise ValueError(f"Userspace: mtu must be from 576 to 65521 bytes, not {mtu!r}")
        if ipv6 is not None and not isinstance(ipv6, bool):
            raise TypeError(f"Userspace: ipv6 must be True, False or None, not {ipv6!r}")
        if not isinstance(raw_packets, bool):
            raise TypeError(f"Userspace: raw_packets must be True or False, not {raw_packets!r}")
        values = {
            "publish": publications(publish),
            "helper": helper,
            "mtu": mtu,
            "ipv6": ipv6,
            "raw_packets": raw_packets,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def check_joining(self, context: Context) -> None:
        """Refuse a program in its network that could send to the host's loopback past its routing.

        :raises ConflictError: it keeps a capability for that.
        """
        if not self.raw_packets:
            _refuse_raw_packets(context)

    def brings(self) -> Iterator[NetNamespace]:
        """A network namespace."""
        yield NetNamespace()

    def root_entries(self, context: Context) -> Iterator[File]:
        """The entries of the root that configure name resolution, if the sandbox has a root of its own."""
        yield File(resolv.PATH, resolv.content([ipaddress.ip_address(NAMESERVER)]))

    def steps(self, context: Context) -> Iterator[Step]:
        """A socket by which the network can be looked at from outside; then wait until there is a way out."""
        check_own(context, "Userspace")
        if context.find(Interface) is not None:
            raise ConflictError(
                "Userspace and Interface: a sandbox has one way out; say Network(uplink='user') instead of Userspace"
            )
        self.check_joining(context)
        handing = Handing(
            count=4,
            prepare=lambda: Way(self.publish, self.helper, self.mtu, self.device, self.ipv6),
            part="Userspace",
        )
        slot, route, filters = handing.slot(context), Register("rtnetlink"), Register("nfnetlink")
        making = [netlink_socket(route), netlink_socket(filters, filters=True)]
        names = [(kind, Register(f"{kind} socket for names")) for kind in ("udp", "tcp")]
        listen = [op for kind, fd in names for op in Bound(kind, NAMESERVER, _DNS).ops(fd)]
        text = f"listen at {NAMESERVER} inside, for the caller's resolver"
        yield Step(Phase.SYSTEM, text, tuple(listen), hints=LISTENING)
        helper = self.helper or "pasta"
        text = (
            f"hand out netlink sockets of this network; the caller lets none out to loopback, and has {helper} attach"
        )
        fds = [route, filters, *(fd for _, fd in names)]
        yield Step(Phase.SYSTEM, text, (*making, *handing.hand(slot, fds)), hints=HINTS)
        yield Step(Phase.SYSTEM, "wait until there is a way out", tuple(handing.wait(slot)))
        yield all_ports()
        yield from resolv.without_a_root(context, [ipaddress.ip_address(NAMESERVER)])


def _refuse_raw_packets(context: Context) -> None:
    """Refuse a program that could send to the host's loopback past its own routing.

    :raises ConflictError: it keeps a capability for that.
    """
    caps = context.find(Capabilities)
    held = caps.permitted | caps.bounding | caps.inheritable if caps is not None else frozenset()
    found = [f"CAP_{cap.name}" for cap in (Cap.NET_RAW, Cap.NET_ADMIN) if cap in held]
    if found:
        raise ConflictError(
            f"Userspace: with {' and '.join(found)} the program can send packets of its own to the host's loopback;"
            " Network(uplink='user') and an Interface drop those. Or leave the capability out, or say"
            " Userspace(raw_packets=True) if the program may reach it"
        )
