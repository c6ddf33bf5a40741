"""The members of a network: numbers, names and addresses that are given out, and taken back at their end."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from isolate.errors import ConflictError, SetupError
from isolate.network import ruleset
from isolate.network.words import PROTOCOLS, Egress, Ingress, Publish, Reach, host_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.network.address import Address, Net
    from isolate.network.hostlink import Published
    from isolate.network.netlink import Message
    from isolate.network.relay import Relayed
    from isolate.network.switch import Plug, Switch

__all__ = ["Member", "Members", "Ports", "Wish"]

#: The number of ports that the kernel gives a bridge (BR_MAX_PORTS less the switch's own).
MOST = 1000
_AT_ONCE = 32
_EVERYWHERE = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


@dataclass(frozen=True)
class Wish:
    """The requests of an interface to its network."""

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
    routes: tuple[tuple[Net, Address | None], ...] = ()
    device: str = "eth0"
    #: The index of the device inside, if it is free; 0: the kernel chooses.
    index: int = 0

    @property
    def rules(self) -> tuple[Reach, ...]:
        """The rules of both limits."""
        return tuple(rule for limit in (self.egress, self.ingress) if limit is not None for rule in limit.rules)


@dataclass
class Member:
    """A member: what it asked for, and what it was given."""

    number: int
    wish: Wish
    addresses: tuple[Address, ...]
    #: Their bytes.
    packed: tuple[bytes, ...]
    plug: Plug | None = None
    #: The elements that its egress and ingress put into the switch's sets.
    rules: list[Message] = field(default_factory=list)
    #: Its ports on the host.
    published: Ports | None = None

    @property
    def name(self) -> str | None:
        """Its first name."""
        return self.wish.name

    @property
    def address(self) -> Address:
        """Its IPv4 address."""
        return self.addresses[0]

    @property
    def names(self) -> tuple[str, ...]:
        """All of its names."""
        return (*((self.wish.name,) if self.wish.name else ()), *self.wish.aliases)


class Ports:
    """A member's published ports, however they are led to it."""

    def __init__(self) -> None:
        self._ways: list[Published | Relayed] = []

    def add(self, way: Published | Relayed) -> None:
        """Some of them."""
        self._ways.append(way)

    def lead(self, to: Sequence[Address]) -> None:
        """Have them lead to a member's addresses, of which the first is IPv4's."""
        for way in self._ways:
            way.lead(to)

    def close(self) -> None:
        """Withdraw its published ports."""
        while self._ways:
            self._ways.pop().close()


#: The addresses of a number, IPv4's first, and their bytes.
_Own: TypeAlias = "tuple[tuple[Address, ...], tuple[bytes, ...]]"
_Apart: TypeAlias = "tuple[Net, tuple[int, int] | None, str | None]"


def _apart(listed: Sequence[tuple[Net, Reach]]) -> list[_Apart]:
    """The same in elements that do not overlap, as the kernel wants a set of ranges.

    The larger network comes first, and a smaller one has what is left of its ports. Members' names come last: what is
    there already stays as it is when a member comes or goes.
    """
    found: list[_Apart] = []
    for net, rule in sorted(listed, key=lambda pair: (isinstance(pair[1].to, str), pair[0].prefixlen)):
        left = [rule.ports or (0, 65535)]
        for other, ports, protocol in found:
            if protocol == rule.protocol and _within(net, other):
                low, high = ports or (0, 65535)
                around = [part for a, b in left for part in ((a, min(b, low - 1)), (max(a, high + 1), b))]
                left = [(a, b) for a, b in around if a <= b]
        found += [(net, ports if rule.ports else None, rule.protocol) for ports in left]
    return found


def _within(net: Net, other: Net) -> bool:
    first, last = other.network_address, other.broadcast_address
    return net.version == other.version and int(first) <= int(net.network_address) <= int(last)


class Members:
    """The members of a network. Not for two threads at once: the network's lock is held."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._subnets = switch.subnets
        net = switch.subnets[4]
        #: The number of its members; the network's own address, the gateway and the broadcast address are none.
        self._most = min(MOST, net.num_addresses - 3)
        #: The addresses of number 0: the network's own and its gateway come before.
        self._first = [net.network_address + 2 for net in self._subnets.values()]
        self.by_number: dict[int, Member] = {}
        #: Those whose egress or ingress is limited.
        self.limited: dict[int, Member] = {}
        self._by_name: dict[str, list[Member]] = {}
        #: By the bytes of an address, which are needed anyway.
        self._by_address: dict[bytes, Member] = {}
        #: Gone, but perhaps not yet for the kernel: the wire of a dead sandbox is taken away a little later.
        self._leaving: dict[int, Plug] = {}
        #: The addresses of numbers, of neighbours at once: a first member does not wait for the others' addresses long,
        #: and for a later one the processor need not fetch the code that computes them.
        self._known: dict[int, _Own] = {}
        self._next = 0

    def find(self, name: str) -> list[Address] | None:
        """The addresses of a name; of one that several have, all of them."""
        members = self._by_name.get(name.removesuffix("."))
        return [a for member in members for a in member.addresses] if members else None

    def at(self, address: Address) -> Member | None:
        """The member that has an address."""
        return self._by_address.get(address.packed)

    def named(self, name: str) -> Member:
        """The member of that name.

        :raises ValueError: there is none; the nearest is named.
        """
        found = self._by_name.get(host_name(name))
        if not found:
            from isolate.kernel.checks import nearest

            raise ValueError(f"no member of the network is named {name!r}{nearest(name, self._by_name)}")
        return found[0]

    def add(self, wish: Wish) -> Member:
        """Give a number and addresses to a new member.

        :raises ConflictError: a name or an address is taken, or lies not in the subnet.
        :raises SetupError: no address is left (EADDRNOTAVAIL).
        """
        names = (wish.name, *wish.aliases) if wish.name else wish.aliases
        for name in names:
            if name in self._by_name:
                raise ConflictError(
                    f"the network has a member named {name!r} already: an alias may be shared, a name not"
                )
        number, (addresses, packed) = self._number(wish)
        limited = wish.egress is not None or wish.ingress is not None
        if limited and not self._switch.routes6:
            addresses, packed = addresses[:1], packed[:1]
        elif wish.address6 is not None:
            addresses, packed = (addresses[0], wish.address6), (packed[0], wish.address6.packed)
        member = Member(number, wish, addresses, packed)
        self.by_number[number] = member
        if limited:
            self.limited[number] = member
        for name in names:
            self._by_name.setdefault(name, []).append(member)
        for each in packed:
            self._by_address[each] = member
        return member

    def _number(self, wish: Wish) -> tuple[int, _Own]:
        """A number that is free, and its addresses.

        It is that of the address which is asked for, or going round, so that addresses come back as late as can be.
        """
        net = self._subnets[4]
        if wish.address6 is not None:
            self._check(wish.address6, self._subnets[6])
        if wish.address is not None:
            self._check(wish.address, net)
            number = int(wish.address) - int(net.network_address) - 2
            own = self._own(number)
            if 6 in self._subnets and wish.address6 is None:
                self._check(own[0][1], self._subnets[6])
            self._free(number)
            return number, own
        most = self._most
        for step in range(most):
            number = (self._next + step) % most
            if number in self.by_number:
                continue
            own = self._known.get(number) or self._own(number)
            # Its addresses may be others', who asked for them.
            if not self._by_address.keys().isdisjoint(own[1]) or (number in self._leaving and self._still(number)):
                continue
            self._next = number + 1
            return number, own
        for number in list(self._leaving):
            if number < most and number not in self.by_number:
                self._free(number)
                return number, self._own(number)
        raise SetupError(
            errno.EADDRNOTAVAIL,
            f"give out an address of {net}",
            part="Network",
            cause=f"all {most} are taken",
            remedy="make the network with a larger subnet, or close what is not needed",
        )

    def _own(self, number: int) -> _Own:
        if number >= self._most:
            return self._made(number)
        found = self._known.get(number)
        if found is None:
            begin = number - number % _AT_ONCE
            for each in range(begin, min(begin + _AT_ONCE, self._most)):
                self._known[each] = self._made(each)
            found = self._known[number]
        return found

    def _made(self, number: int) -> _Own:
        addresses = tuple(first + number for first in self._first)
        return addresses, tuple(each.packed for each in addresses)

    def _still(self, number: int) -> bool:
        if self._switch.left(self._leaving[number]):
            return True
        del self._leaving[number]
        return False

    def _free(self, number: int) -> None:
        """Have the wire removed now, if it is still there: somebody may hold the network of who had it."""
        plug = self._leaving.pop(number, None)
        if plug is not None:
            self._switch.cut(plug)

    def _check(self, address: Address, net: Net) -> None:
        if address not in net:
            raise ConflictError(f"Interface: the address {address} is not in the network's subnet {net}")
        if address in (net.network_address, net.broadcast_address, net.network_address + 1):
            what = "the network's gateway" if address == net.network_address + 1 else "no host's address"
            raise ConflictError(f"Interface: {address} is {what}")
        taken = self._by_address.get(address.packed)
        if taken is not None:
            raise ConflictError(f"Interface: the address {address} is taken by the member {taken.name or taken.number}")

    def told(self) -> list[dict[str, Any]]:
        """A description of each member as JSON data."""
        rows = []
        for member in self.by_number.values():
            moved = None
            if member.plug is not None and member.plug.attached:
                with contextlib.suppress(OSError):  # its sandbox ends just now
                    moved = self._switch.counters(member.plug)._asdict()
            rows.append(
                {
                    "name": member.name,
                    "number": member.number,
                    "aliases": list(member.wish.aliases),
                    "addresses": [str(each) for each in member.addresses],
                    "counters": moved,
                    "published": [str(each) for each in member.wish.publish],
                    "egress": list(member.wish.egress.to) if member.wish.egress is not None else None,
                    "ingress": list(member.wish.ingress.source) if member.wish.ingress is not None else None,
                }
            )
        return rows

    def remove(self, member: Member) -> bool:
        """Take back what it was given; False where that has been done."""
        if self.by_number.get(member.number) is not member:
            return False
        del self.by_number[member.number]
        self.limited.pop(member.number, None)
        if member.plug is not None:
            self._leaving[member.number] = member.plug
        for name in member.names:
            others = self._by_name.get(name, [])
            if member in others:
                others.remove(member)
            if not others:
                self._by_name.pop(name, None)
        for packed in member.packed:
            self._by_address.pop(packed, None)
        return True

    def rules(self, member: Member) -> list[Message]:
        """The messages that put a member's egress and ingress into the switch's sets, as the others are now."""
        found = []
        for limit, put in ((member.wish.egress, ruleset.reach), (member.wish.ingress, ruleset.take)):
            listed = [(net, rule) for rule in (limit.rules if limit is not None else ()) for net in self._targets(rule)]
            for net, ports, protocol in _apart(listed):
                own = next((each for each in member.addresses if each.version == net.version), None)
                if own is not None:
                    found.append(put(own, net, ports, PROTOCOLS[protocol] if protocol else None))
        return found

    def _targets(self, reach: Reach) -> Sequence[Net]:
        """The networks that a rule of an egress or an ingress is about."""
        if reach.to is None:
            return _EVERYWHERE
        if not isinstance(reach.to, str):
            return [reach.to]
        return [ipaddress.ip_network(a) for a in self.find(reach.to) or ()]
