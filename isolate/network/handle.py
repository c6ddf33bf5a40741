"""A network that this program owns: a switch, its members, their names, what they reach, and what reaches them."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from isolate.engine import native
from isolate.engine.descriptors import OwnedDescriptor
from isolate.errors import SetupError
from isolate.kernel.checks import is_int, is_number, keywords
from isolate.kernel.closing import Closing
from isolate.namespaces import NetNamespace
from isolate.network import address, link, ruleset, subnets
from isolate.network.hostlink import HostLink, Published, reserve
from isolate.network.joinable import Joinable
from isolate.network.keeper import capable
from isolate.network.members import Member, Members, Ports, Wish
from isolate.network.names import Names, nameservers
from isolate.network.place import Connection, Place, Running, netlink_of
from isolate.network.relay import Relay, Relayed
from isolate.network.shared import Door
from isolate.network.sockets import Supply
from isolate.network.switch import Plug, Switch
from isolate.network.watching import Watching
from isolate.network.way import Way
from isolate.network.words import host_name
from isolate.thread.disposable import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from isolate.network.address import Address, Net
    from isolate.network.impair import Impaired
    from isolate.network.netlink import Message, Socket
    from isolate.network.words import Publish

__all__ = ["Network"]

T = TypeVar("T")
_open: set[Network] = set()


@keywords
class Network(Watching, Joinable, Closing):
    """A network of sandboxes: a bridge in a namespace of its own, gone with this program however that ends.

    ``subnet`` is the IPv4 network that members get their addresses from; without, one that is free. ``ipv6`` is a
    network too; None is a unique local one, made at random, and False none. ``uplink`` says what members may reach
    beyond: None, nothing; ``"host"``, whatever this program's network reaches, with its addresses (NAT); ``"user"``,
    the same by pasta or slirp4netns (see :class:`Userspace`), which needs no privileges and changes nothing of the
    host. ``names``: a resolver at the network's first address knows the members by their names, and with an uplink asks
    the host's resolvers about others. ``mtu`` is the largest packet, 576 to 65535 bytes. ``idle``: a TCP
    connection by a published port that is relayed (as an ordinary user, or at an IPv6 address) ends when nothing has
    moved by it for so many seconds; None is never.

    Members are :class:`Interface` parts of sandboxes. They reach one another, unless an ``egress=`` or an
    ``ingress=`` says less. Nothing
    of the host can be reached from inside, and nothing inside from the host or beyond but what is published.

    Needs CAP_NET_ADMIN and CAP_SYS_ADMIN, or a user namespace: as an ordinary user, members reach one another and ports
    can be published, and there is no ``uplink="host"``. The host's nftables and sysctls are not touched, with these
    exceptions: a published port or an uplink brings a table of its own, and an uplink has the host's own devices
    forward, by netlink and until the network is closed. Linux 5.14 with bridge, veth and nf_tables.

    A context manager; ``close()`` ends it.

    :raises ConflictError: the subnet overlaps with a route of the host's (with an uplink), or another network's.
    :raises SetupError: it cannot be made.
    """

    def __init__(
        self,
        subnet: str | Net | None = None,
        *,
        ipv6: str | Net | bool | None = None,
        uplink: str | None = None,
        names: bool = True,
        mtu: int = 1500,
        name: str | None = None,
        idle: float | None = 3600.0,
    ) -> None:
        if uplink not in (None, "host", "user"):
            raise ValueError(f"Network: uplink must be None, 'host' or 'user', not {uplink!r}")
        if not is_int(mtu) or not 576 <= mtu <= 65535:
            raise ValueError(f"Network: mtu must be from 576 to 65535 bytes, not {mtu!r}")
        if idle is not None and not (is_number(idle) and idle > 0):
            raise ValueError(f"Network: idle must be a number of seconds above 0, or None, not {idle!r}")
        if name is not None:
            host_name(name, "Network: name")
        self._owner = native.owner()
        self._door: Door | None = None
        #: The name by which other programs find it, or None.
        self.name = name
        self._closed = True  # until it is made
        nets = [subnets.ipv4(subnet, [other.subnet for other in list(_open)]), *subnets.ipv6(ipv6, mtu)]
        #: The IPv4 network of its members.
        self.subnet: Net = nets[0]
        #: Their IPv6 network, or None.
        self.subnet6: Net | None = nets[1] if len(nets) > 1 else None
        self.uplink = uplink
        self.mtu = mtu
        self.idle = idle
        self._names: Names | None = None
        self._host: HostLink | None = None
        self._relay: Relay | None = None
        self._impaired: dict[int, Impaired] = {}
        # The host's network is that of the thread that makes this, whichever thread starts members later.
        self._home = NetNamespace(fd=OwnedDescriptor(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)))
        self._privileged = capable()
        if uplink == "host" and not self._privileged:
            raise SetupError(
                errno.EPERM,
                "use the host's network as the uplink",
                part="Network",
                cause="it needs CAP_NET_ADMIN in the host's network",
                remedy='be root, or say uplink="user"',
            )
        self._way: Way | None = None
        if uplink == "user":
            self._way = Way((), None, min(mtu, 65520), ruleset.UPLINK, None if self.subnet6 is not None else False)
        self._switch = Switch(nets, mtu=mtu, out=uplink is not None, names=names)
        self._members = Members(self._switch)
        self._closed = False
        try:
            if names:
                servers = nameservers() if uplink is not None else []
                self._names = Names(self._switch.listening, self._find, self._known, self._may_ask, servers)
            if uplink == "host":
                self._host_link()
            if self._way is not None:
                self._way.attach(self._switch.route)
            if name is not None:
                self._door = Door(self, name, self.tell)
        except BaseException:
            self.close()
            raise
        _open.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._members.by_number)} members"
        return f"<Network {self.subnet} ({state})>"

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def gateway(self) -> Address:
        """Its own first address: members' way out, and where names are asked for."""
        return self._switch.gateways[4]

    @property
    def uplink6(self) -> bool:
        """Whether members reach beyond by IPv6, too: a host forwards it already, or pasta has a way out by it."""
        if self._way is not None:
            return self._way.ipv6 and self._switch.routes6
        return self._host is not None and self._host.there6 is not None

    @property
    def nameservers(self) -> list[Address]:
        """The resolvers of its members: its gateways, or none."""
        return list(self._switch.gateways.values()) if self._names is not None else []

    @property
    def namespace(self) -> int:
        """A descriptor of the switch's network namespace, open until the network is closed."""
        self._check()
        return self._switch.namespace

    @property
    def members(self) -> dict[str, list[Address]]:
        """The addresses of each member, by its name, or its number as ``"#3"``."""
        with self._switch.lock:
            return {m.name or f"#{m.number}": list(m.addresses) for m in self._members.by_number.values()}

    def tell(self) -> dict[str, Any]:
        """A description of it as JSON data: subnets, members with addresses, names, ports and counters."""
        with self._switch.lock:
            members = self._members.told()
        return {
            "name": self.name,
            "pid": os.getpid(),
            "subnet": str(self.subnet),
            "mtu": self.mtu,
            "subnet6": str(self.subnet6) if self.subnet6 is not None else None,
            "uplink": self.uplink,
            "uplink6": self.uplink6,
            "gateway": str(self.gateway),
            "nameservers": [str(each) for each in self.nameservers],
            "members": members,
        }

    def counters(self, member: Member) -> link.Counters:
        """The traffic of a member so far, received and sent, as the member sees it."""
        self._check()
        if member.plug is None:
            raise ValueError("the member is not attached yet")
        if self._members.by_number.get(member.number) is not member:
            raise SetupError(errno.ENODEV, "look at an interface", part="Interface", cause="it has left the network")
        return self._switch.counters(member.plug)

    def _plug(self, name: str) -> Plug:
        self._check()
        with self._switch.lock:
            member = self._members.named(name)
            if member.plug is None or not member.plug.attached:
                raise ValueError(f"the member {name!r} is not attached yet")
            return member.plug

    # ---- members -------------------------------------------------------------------------------------------------

    def reserve(self, wish: Wish) -> Place:
        """A place for a new member: names, addresses and ports are its own from now on, until it is closed.

        :raises ConflictError: something of it is taken.
        """
        self._check()
        with self._switch.lock:
            place = Place(self, self._members.add(wish))
        try:
            if wish.publish:
                place.publish()
        except BaseException:
            place.close()
            raise
        return place

    def _publish(self, wanted: Sequence[Publish]) -> Ports:
        """Publish by the host's nftables if possible. A relay serves IPv6 addresses: the host need not forward IPv6."""
        by_rules = [each for each in wanted if each.version == 4 and self._privileged and self._way is None]
        relayed = [each for each in wanted if each not in by_rules]
        ports = Ports()
        try:
            if by_rules:
                ports.add(self._at_home(lambda: Published(self._host_link(), by_rules)))
            if relayed:
                ports.add(self._relayed(relayed))
        except BaseException:
            ports.close()
            raise
        return ports

    def _relayed(self, wanted: Sequence[Publish]) -> Relayed:
        with self._switch.lock:
            if self._relay is None:
                self._relay = Relay(Supply(self._switch.namespace), idle=self.idle)
            relay = self._relay
        return self._at_home(lambda: Relayed(relay, tuple(wanted), reserve))

    def _host_link(self) -> HostLink:
        """The wire to the host, made when it is first asked for."""
        with self._switch.lock:
            if self._host is None:
                self._host = self._at_home(lambda: HostLink(self._switch, out=self.uplink == "host"))
            return self._host

    def _at_home(self, function: Callable[[], T]) -> T:
        """Call a function in the host's network, which need not be this thread's."""
        found = os.stat("/proc/thread-self/ns/net")
        if self._home.identity == (found.st_dev, found.st_ino):
            return function()
        return in_thread(function, self._home)

    def connect(self, target: NetNamespace | Running | int, wish: Wish) -> Connection:
        """Attach the network of something that runs already. See :func:`isolate.network.connect`."""
        with contextlib.ExitStack() as stack:
            inside = stack.enter_context(netlink_of(target))
            if wish.device == "":
                taken = {each.name for each in link.links(inside)}
                wish = replace(wish, device=next(f"eth{n}" for n in range(len(taken) + 1) if f"eth{n}" not in taken))
            place = self.reserve(wish)
            try:
                self._attach(place.member, inside)
                address.until_found(inside, place.member.addresses)
            except BaseException:
                place.close()
                raise
        return Connection(place)

    def _attach(self, member: Member, inside: Socket) -> None:
        wish = member.wish
        plug = Plug(
            member.number,
            member.addresses,
            member.packed,
            link.mac_bytes(wish.mac) if wish.mac else b"\x02\x42" + member.packed[0],
            wish.device,
            wish.mtu or self.mtu,
            egress=wish.egress is not None,
            ingress=wish.ingress is not None,
            rate=wish.rate,
            burst=wish.burst,
            everywhere=self.uplink is not None or bool(wish.publish),
            everywhere6=self.uplink is not None and self.uplink6,
            routes=wish.routes,
            inner=wish.index,
        )
        with self._switch.lock:
            self._check()
            member.plug = plug
            self._switch.plug_in(plug, inside, self._reach(member) if plug.limited else ())
            if self._members.limited:
                self._meet(member)
            if member.published is not None:
                member.published.lead(member.addresses)

    def _reach(self, member: Member) -> list[Message]:
        """The rules of whom a member may connect to and takes connections from, as the others are now."""
        member.rules = self._members.rules(member)
        return member.rules

    def _meet(self, new: Member) -> None:
        """Those that may reach a member by its name, or take from it, may now that it is there."""
        for other in self._limited():
            if other is new:
                continue
            if any(isinstance(rule.to, str) and rule.to in new.names for rule in other.wish.rules):
                before = set(other.rules)
                self._switch.rules([message for message in self._reach(other) if message not in before])

    def _part(self, new: Member) -> None:
        """Remove all rules for the addresses of a member that left, because another member will get them."""
        for other in self._limited():
            if other is not new:
                before = other.rules
                kept = self._reach(other)
                self._switch.rules([ruleset.undone(message) for message in before if message not in kept])

    def _limited(self) -> list[Member]:
        """Members whose egress or ingress is limited, and which are attached."""
        return [m for m in list(self._members.limited.values()) if m.plug is not None and m.plug.attached]

    def leave(self, member: Member, *, wait: bool) -> None:
        """Take a member out. Without ``wait`` its network is about to go anyway."""
        self._switch.lock.call(lambda: self._leave(member, wait=wait))

    def _leave(self, member: Member, *, wait: bool) -> None:
        if native.owner() != self._owner or self._closed:
            return
        with self._switch.lock:
            if not self._members.remove(member):
                return  # it has left, and its number may be another's
            impaired = self._impaired.pop(member.number, None)
            if impaired is not None:
                impaired.end()
            if member.published is not None:
                member.published.close()
            if member.plug is not None:
                self._switch.unplug(member.plug, [ruleset.undone(m) for m in member.rules], wait=wait)
            self._part(member)

    # ---- names ---------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> list[Address] | None:
        with self._switch.lock:
            return self._members.find(name)

    def _known(self, address: Address) -> str | None:
        with self._switch.lock:
            member = self._members.at(address)
            return member.name if member is not None else None

    def _may_ask(self, address: Address) -> bool:
        with self._switch.lock:
            member = self._members.at(address)
            return member is not None and member.wish.egress is None

    # ---- life ----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._closed:
            raise ValueError(f"{self!r}: the network must be open")
        if native.owner() != self._owner:
            raise ValueError("a network belongs to the process that made it")

    def close(self) -> None:
        """Take it down: every wire, name and rule. Sandboxes in it go on without a network."""
        _open.discard(self)
        if self._closed or native.owner() != self._owner:
            return
        if self._door is not None:
            self._door.close()
        self._closed = True
        if self._names is not None:
            self._names.close()
        with self._switch.lock:
            for member in self._members.by_number.values():
                if member.published is not None:
                    member.published.close()
        if self._way is not None:
            self._way.close()
        if self._host is not None:
            self._host.close()
        if self._relay is not None:
            self._relay.close()
        self._switch.close()
        self._home.close()

    def __enter__(self) -> Self:
        self._check()
        return self

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            import warnings

            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
            self.close()
