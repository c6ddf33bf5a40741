"""``Interface``: a sandbox's place in a network."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from isolate.cgroups import Limits
from isolate.engine.handing import Handing
from isolate.engine.ops import Register
from isolate.engine.plan import Phase, Step
from isolate.errors import ConflictError
from isolate.kernel import checks
from isolate.kernel.checks import is_int, keywords
from isolate.mounts import File
from isolate.namespaces import NetNamespace
from isolate.network import link, resolv
from isolate.network.inside import all_ports, check_own, netlink_socket
from isolate.network.joinable import Joinable
from isolate.network.members import Wish
from isolate.network.words import Egress, Ingress, Publish, PublishLike, host_name, publications, rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from isolate.engine.plan import Context
    from isolate.network.address import Address, Net

__all__ = ["Interface"]

_HINTS = {
    5: "it was not attached: the network refused it, or this program ended meanwhile",
}


@keywords
@dataclass(frozen=True, init=False)
class Interface:
    """A place in a :class:`Network`: a device inside, with addresses of it. Any number of them, of one or more
    networks.

    ``name`` and ``aliases`` are what other members find it by. ``address`` and ``address6`` are given out by the
    network unless they are named. ``publish`` has ports of the host's lead to it: ``{8080: 80}``,
    ``{"127.0.0.1:5353/udp": 53}``, ``{"8000-8010": "9000-9010"}``; at the host's loopback, unless an address is named.
    ``egress`` limits what it may open connections to (:class:`Egress`); None is
    everything that the network reaches. ``ingress`` limits which members it takes connections from, and at which of its
    ports (:class:`Ingress`); None is all of them. ``rate`` is its limit in bits per second, each way (``"20M"``),
    ``burst`` how many bytes may go at once (``"64K"``). ``mac`` and ``mtu`` are the device's, ``device`` its name
    inside (``eth0``, ``eth1``, … by default). ``routes`` are further ways: ``{"192.0.2.0/24": "10.88.0.7"}``, from a
    network to the member that leads there.

    A sandbox with it starts once it is attached. Names, addresses and ports are taken back when the sandbox has ended
    and that was seen: by ``wait()``, ``poll()`` or ``result()``, or by closing its :class:`~isolate.Process`.
    The same part can be started several times only without a name, an address and ports.

    Brings a new network namespace. Needs no privileges inside.
    """

    network: Joinable
    name: str | None = None
    aliases: tuple[str, ...] = ()
    address: Address | None = None
    address6: Address | None = None
    publish: tuple[Publish, ...] = ()
    egress: Egress | None = None
    ingress: Ingress | None = None
    rate: int | None = None
    burst: int | None = None
    mac: str | None = None
    mtu: int | None = None
    device: str | None = None
    routes: tuple[tuple[Net, Address | None], ...] = field(default=())

    repeatable: ClassVar[bool] = True
    #: ``Limits(network=)`` holds by it.
    holds_rates: ClassVar[bool] = True

    def __init__(
        self,
        network: Joinable,
        *,
        name: str | None = None,
        aliases: tuple[str, ...] | list[str] = (),
        address: str | Address | None = None,
        address6: str | Address | None = None,
        publish: PublishLike = (),
        egress: Egress | None = None,
        ingress: Ingress | None = None,
        rate: int | str | None = None,
        burst: int | str | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        device: str | None = None,
        routes: Mapping[str, str | None] | None = None,
    ) -> None:
        if not isinstance(network, Joinable):
            hint = f"; network.find({network!r}) gives the one of that name" if isinstance(network, str) else ""
            raise TypeError(f"Interface: network must be a Network, not {network!r}{hint}")
        if egress is not None and not isinstance(egress, Egress):
            raise TypeError(f"Interface: egress must be an Egress such as Egress(['db:5432']), not {egress!r}")
        if ingress is not None and not isinstance(ingress, Ingress):
            raise TypeError(f"Interface: ingress must be an Ingress such as Ingress(['web:5432']), not {ingress!r}")
        if routes is not None and not hasattr(routes, "items"):
            raise TypeError(f"Interface: routes must be a mapping of networks to addresses, not {routes!r}")
        if isinstance(aliases, str):
            raise TypeError(f"Interface: aliases must be a list of names, not {aliases!r}")
        values = {
            "network": network,
            "name": None if name is None else host_name(name, "Interface: name"),
            "aliases": tuple(host_name(alias, "Interface: alias") for alias in aliases),
            "address": _address(address, network.subnet, "address"),
            "address6": _address(address6, network.subnet6, "address6"),
            "publish": publications(publish),
            "egress": egress,
            "ingress": ingress,
            "rate": _rate(rate),
            "burst": None if burst is None else checks.size("Interface: burst", burst, 1600),
            "mac": _mac(mac),
            "mtu": _mtu(mtu, network),
            "device": _device(device),
            "routes": tuple(_route(to, via, network) for to, via in (routes or {}).items()),
        }
        if burst is not None and rate is None:
            raise ValueError("Interface: burst is a limit's, and there is no rate")
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def __repr__(self) -> str:
        shown = [f"{key}={getattr(self, key)!r}" for key in ("name", "publish", "egress", "rate") if getattr(self, key)]
        return f"Interface({', '.join([repr(self.network), *shown])})"

    def brings(self) -> Iterator[NetNamespace]:
        """A network namespace."""
        yield NetNamespace()

    def root_entries(self, context: Context) -> Iterator[File]:
        """Entries that configure name resolution in a root of the sandbox's own: the resolver of its first network."""
        if self._first(context):
            yield File(resolv.PATH, resolv.content(self.network.nameservers))

    def steps(self, context: Context) -> Iterator[Step]:
        """A socket by which the network can be asked from outside; then wait until that is done."""
        check_own(context, "Interface", ": attach it by network.connect(...) instead")
        interfaces = [part for part in context.parts if isinstance(part, Interface)]
        wish = self.wish(next(i for i, part in enumerate(interfaces) if part is self))
        limits = context.find(Limits)
        if limits is not None and isinstance(limits.network, int):
            wish = replace(wish, rate=min(limits.network, wish.rate or limits.network))
        handing = Handing(prepare=lambda: self.network.reserve(wish), part="Interface")
        slot, fd = handing.slot(context), Register("netlink socket")
        text = f"hand out a netlink socket of this network; the caller attaches {wish.device} to {self.network.subnet}"
        yield Step(Phase.SYSTEM, text, (netlink_socket(fd), *handing.hand(slot, [fd])))
        yield Step(Phase.SYSTEM, "wait until it is attached", tuple(handing.wait(slot)), hints=_HINTS)
        if interfaces[0] is self:
            yield all_ports()
        if self._first(context):
            yield from resolv.without_a_root(context, self.network.nameservers)

    def _first(self, context: Context) -> bool:
        """Whether it is the first of a network with names."""
        named = [p for p in context.parts if isinstance(p, Interface) and p.network.nameservers]
        return bool(named) and named[0] is self

    def wish(self, number: int = 0) -> Wish:
        """The request to its network, as the interface of that number in a sandbox."""
        return Wish(
            self.name,
            self.aliases,
            self.address,
            self.address6,
            self.publish,
            self.egress,
            self.ingress,
            self.rate,
            self.burst,
            self.mac,
            self.mtu,
            self.routes,
            self.device or f"eth{number}",
            2 + number,  # in a new network there is loopback alone, which is 1
        )


def _address(value: str | Address | None, net: Net | None, what: str, *, gateway: bool = False) -> Address | None:
    if value is None:
        return None
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"Interface: {what} must be an address of {net}, not {value!r}") from None
    if net is None:
        raise ConflictError(f"Interface: the network has no IPv6, so there is no {what}")
    if found.version != net.version or found not in net:
        raise ConflictError(f"Interface: the address {found} is not in the network's subnet {net}")
    if found in (net.network_address, net.broadcast_address) or (found == net.network_address + 1 and not gateway):
        raise ConflictError(f"Interface: {found} is the network's own address, its gateway or its broadcast address")
    return found


def _rate(value: int | str | None) -> int | None:
    return rate(value, "Interface: rate")


def _mac(value: str | None) -> str | None:
    if value is None:
        return None
    pairs = value.lower().split(":") if isinstance(value, str) else []
    try:
        octets = [int(pair, 16) for pair in pairs]
    except ValueError:
        octets = []
    if len(octets) != 6 or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"Interface: mac must be like '02:00:00:00:00:01', not {value!r}")
    if octets[0] & 1 or not any(octets):
        raise ValueError(f"Interface: mac must be one device's address, and {value} is a group's")
    return ":".join(pairs)


def _mtu(value: int | None, network: Joinable) -> int | None:
    if value is None:
        return None
    if not is_int(value) or not 576 <= value <= network.mtu:
        raise ValueError(f"Interface: mtu must be from 576 to the network's {network.mtu} bytes, not {value!r}")
    return value


def _device(value: str | None) -> str | None:
    if value is None:
        return None
    good = isinstance(value, str) and value.isascii() and 0 < len(value) <= link.LONGEST_NAME
    if not good or value in (".", "..", "lo", "all", "default") or any(c in "/:% \t\n" or c < "!" for c in value):
        raise ValueError(f"Interface: device must be a name of 1 to {link.LONGEST_NAME} characters, not {value!r}")
    return value


def _route(to: str, via: str | None, network: Joinable) -> tuple[Net, Address | None]:
    try:
        net = ipaddress.ip_network(to)
    except ValueError as error:
        raise ValueError(f"Interface: routes: {error}") from None
    if via is None:
        return net, None
    found = _address(
        via, network.subnet if net.version == 4 else network.subnet6, f"routes: the way to {to}", gateway=True
    )
    return net, found
