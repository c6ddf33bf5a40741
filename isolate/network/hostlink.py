"""The wire between a switch and its host: published ports, and the way out, by nftables and forwarding for each device.

The host's end has a link-local address of its own and a table of its own, which the kernel removes with the socket that
made it. Members' addresses are never seen there: what they send bears the switch's end of the wire, so two networks may
have the same subnet, and the host needs no route to any.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import secrets
import socket
import struct
import threading
from typing import TYPE_CHECKING

from isolate.errors import SetupError
from isolate.network import address, conntrack, link, nft, ruleset
from isolate.network.keeper import SIOCGSKNS, Kept, keep
from isolate.network.link import FORWARDING, ROUTE_LOCALNET
from isolate.network.netlink import NETFILTER, ROUTE, Socket
from isolate.network.nft import REGISTER, Chain, Element, Set, Table
from isolate.network.words import EVERY, PROTOCOLS, Publish

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from isolate.network.address import Address
    from isolate.network.netlink import Message
    from isolate.network.switch import Switch

__all__ = ["HostLink", "Published", "uplinks"]

#: Host ends of such wires: isou0, isou1, … One network's rules refuse what comes from another's.
PREFIX = "isou"
_INDEX = 3  # of the switch's end
_HERE_MAC, _THERE_MAC = "02:69:73:6f:75:01", "02:69:73:6f:75:02"  # nobody else is on such a wire
_RAW, _R = -300, REGISTER
_LINK_LOCAL = ipaddress.ip_network("169.254.0.0/16")
#: 169.254.169.254 and its neighbours are where clouds answer for their metadata.
_LEFT_OUT = (169, 170, 0, 255)
_LOOPBACK = [nft.masked(b"\xff\0\0\0"), nft.compare(b"\x7f\0\0\0")]


class Published:
    """A member's published ports: reserved on the host, and let through. A closing one gives them back."""

    def __init__(self, host: HostLink, publish: Iterable[Publish]) -> None:
        self._host = host
        self._reserved: list[socket.socket] = []
        #: For each port: its publication, and its numbers on the host, on the wire and at the member.
        self.ports: list[tuple[Publish, int, int, int]] = []
        self._in_force = False
        self._to: Address | None = None
        try:
            for each in publish:
                for outside, inside in each.pairs:
                    self._reserved.append(reserve(each, outside))
                    self.ports.append((each, outside, host.number(each.protocol), inside))
            if any(not ipaddress.ip_address(each.address).is_loopback for each, *_ in self.ports):
                host.forward()
        except BaseException:
            self.close()
            raise

    def lead(self, addresses: Sequence[Address]) -> None:
        """Have them lead to a member's first address."""
        to = addresses[0]
        self._host.switch.rules(
            [ruleset.published(wire, PROTOCOLS[p.protocol], to, inside) for p, _, wire, inside in self.ports]
        )
        self._to = to
        self._host.rules(self._host.elements(self.ports))
        self._in_force = True
        self._forget()  # whoever has sent before there was a member here is to reach this one now

    def close(self) -> None:
        """Withdraw its published ports. Others may use them."""
        if self._in_force and self._to is not None:
            self._in_force = False
            self._host.rules(self._host.elements(self.ports, remove=True))
            self._host.switch.rules(
                [
                    ruleset.published(wire, PROTOCOLS[p.protocol], self._to, inside, remove=True)
                    for p, _, wire, inside in self.ports
                ]
            )
        self._forget()
        for each, _, wire, _ in self.ports:
            self._host.free(each.protocol, wire)
        self.ports = []
        while self._reserved:
            self._reserved.pop().close()

    def _forget(self) -> None:
        places = {(each.address, outside) for each, outside, _, _ in self.ports if each.protocol == "udp"}
        if places and self._to is not None:
            self._host.forget(places)


class HostLink:
    """The wire. The network of the thread that makes it is the host's."""

    def __init__(self, switch: Switch, *, out: bool) -> None:
        self.switch = switch
        self.out = out
        self._numbers: dict[str, set[int]] = {protocol: set() for protocol in PROTOCOLS}
        self._last = 0
        self.table: Table | None = None
        self._route = Socket(ROUTE)
        self._filters: Socket | None = None
        self._forwarded = False
        try:
            self._filters = Socket(NETFILTER)
            self._wire()
            self._tables()
            if out:
                self.forward()
        except BaseException:
            self.close()
            raise

    def forward(self) -> None:
        """Have the host's own devices forward, for what comes from beyond or goes there."""
        if not self._forwarded:
            self._route.batch([link.forwarding(self.index)])
            FORWARDED.need(self._route)
            self._forwarded = True

    def _wire(self) -> None:
        mtu = self.switch.mtu
        making = link.veth(
            f"{PREFIX}%d",
            ruleset.UPLINK,
            self.switch.namespace,
            peer_index=_INDEX,
            mtu=mtu,
            mac=_HERE_MAC,
            peer_mac=_THERE_MAC,
        )
        self._route.batch([making])
        self.index: int = link.peer_of(self.switch.route, _INDEX)
        #: The host's end, and both addresses.
        self.device: str = link.named(self._route, self.index).name
        self.here: ipaddress.IPv4Address | ipaddress.IPv6Address
        self.there: ipaddress.IPv4Address | ipaddress.IPv6Address
        self.here, self.there = self._addresses()
        step = f"let {self.device} take what is for the host's loopback"
        settings = link.change(self.index, up=True, ipv4={ROUTE_LOCALNET: 1}, step=step)
        self._route.batch([settings])
        self.switch.route.batch(
            [
                address.add(_INDEX, ipaddress.ip_interface((self.there, 31))),
                link.change(_INDEX, up=True, ipv4={FORWARDING: 1}, step="set the uplink up"),
                address.route(None, index=_INDEX, via=self.here),
            ]
        )
        #: The switch's end, of IPv6; None where there is no way out by it.
        self.there6: Address | None = None
        if self.out and self.switch.routes6 and address.forwards6(self._route):
            self._wire6()
        link.settle(self._route, self.device)

    def _wire6(self) -> None:
        """A way out by IPv6, which the host forwards already, by all devices or by none: nothing of it is changed."""
        pair = ipaddress.IPv6Network((b"\xfd" + secrets.token_bytes(14) + b"\0", 127))
        here, there = pair[0], pair[1]
        # Neighbours are noted: the host takes nothing from the wire that is for itself, questions about them included.
        self._route.batch(
            [
                address.add(self.index, ipaddress.ip_interface((here, 127))),
                address.neighbour(self.index, there, link.mac_bytes(_THERE_MAC)),
            ]
        )
        self.switch.route.batch(
            [
                address.add(_INDEX, ipaddress.ip_interface((there, 127))),
                address.neighbour(_INDEX, here, link.mac_bytes(_HERE_MAC)),
                address.route(None, index=_INDEX, via=here),
            ]
        )
        self.there6 = there

    def _addresses(self) -> tuple[Address, Address]:
        """A pair that nobody else has here: by the index of the host's end, which the kernel gives out once."""
        for step in range(1 << 14):
            number = 2 * ((self.index + step) % (1 << 15))
            if number >> 8 in _LEFT_OUT:
                continue
            here = _LINK_LOCAL.network_address + number
            adding = address.add(self.index, ipaddress.ip_interface((here, 31)))
            if any(_LINK_LOCAL.overlaps(net) and here in net for net in self._local()):
                continue
            self._route.batch([adding])
            return here, here + 1
        raise SetupError(errno.EADDRNOTAVAIL, "find a link-local address", part="Network")

    def _local(self) -> list[address.Net]:
        found = getattr(self, "_taken", None)
        if found is None:
            found = self._taken = [a.interface.network for a in address.addresses(self._route)]
        return found

    # ---- rules ---------------------------------------------------------------------------------------------------

    def _tables(self) -> None:
        self.table = table = Table(f"isolate-{self.device}")
        accept, drop = nft.verdict(nft.ACCEPT), nft.verdict(nft.DROP)
        ours, theirs = nft.device("iifname", self.device), nft.device("oifname", self.device)
        key = (nft.PROTOCOL, nft.PORT)
        messages = [
            table.create(),
            table.set(Set("published", (nft.IPV4, *key), (nft.IPV4, nft.PORT))),
            table.set(Set("published_everywhere", key, (nft.IPV4, nft.PORT))),
            table.chain(Chain("forged", nft.PREROUTING, priority=_RAW)),
            table.chain(Chain("input", nft.INPUT)),
            table.chain(Chain("forward", nft.FORWARD)),
            table.chain(Chain("publish", nft.PREROUTING, "nat", -100)),
            table.chain(Chain("publish_here", nft.OUTPUT, "nat", -100)),
            table.chain(Chain("masquerade", nft.POSTROUTING, "nat", 100)),
            # The device takes packets for loopback, as which answers leave here. What names it on the wire is forged.
            table.rule("forged", *ours, *nft.family(4), ruleset.destination(4), *_LOOPBACK, drop),
            # Nothing of the host can be reached but answers.
            table.rule("input", *ours, *nft.established(), accept),
            table.rule("input", *ours, drop),
            table.rule("forward", *ours, *nft.established(), accept),
            *ruleset.refused(table, "forward", *ours, *nft.device("oifname", f"{PREFIX}*")),
            *([] if self.out else ruleset.refused(table, "forward", *ours)),
            *ruleset.refused(table, "forward", *theirs, *nft.device("iifname", f"{PREFIX}*")),
            table.rule("forward", *theirs, *nft.established(), accept),
            table.rule("forward", *theirs, *nft.translated(), accept),
            table.rule("forward", *theirs, drop),
            table.rule("masquerade", *theirs, *nft.family(4), ruleset.source(4), *_LOOPBACK, nft.masquerade()),
        ]
        if self.out:
            other = [nft.meta("oifname"), nft.compare(nft.ifname(self.device), unequal=True)]
            own = [*nft.family(4), ruleset.source(4), nft.compare(self.there.packed)]
            messages.append(table.rule("masquerade", *own, *other, nft.masquerade()))
            if self.there6 is not None:
                own = [*nft.family(6), ruleset.source(6), nft.compare(self.there6.packed)]
                messages.append(table.rule("masquerade", *own, *other, nft.masquerade()))
        for chain in ("publish", "publish_here"):
            ports = [nft.meta("l4proto", _R + 1), ruleset.port(_R + 2)]
            exact = [*nft.family(4), ruleset.destination(4), *ports, nft.lookup("published", into=_R)]
            messages.append(table.rule(chain, *exact, nft.destination_nat(4)))
            anywhere = [*nft.family(4), *nft.local_destination(), nft.meta("l4proto"), ruleset.port(_R + 1)]
            messages.append(
                table.rule(chain, *anywhere, nft.lookup("published_everywhere", into=_R), nft.destination_nat(4))
            )
        self.rules(messages)

    def rules(self, messages: list[Message]) -> None:
        """Change the host's table."""
        if messages and self._filters is not None and not self._filters.closed:
            with self.switch.lock:
                self._filters.transaction(nft.SUBSYSTEM, messages)

    def elements(self, ports: Iterable[tuple[Publish, int, int, int]], *, remove: bool = False) -> list[Message]:
        """Elements of the maps for published ports."""
        exact, everywhere = [], []
        for each, outside, wire, _ in ports:
            key = (bytes([PROTOCOLS[each.protocol]]), struct.pack(">H", outside))
            value = (self.there.packed, struct.pack(">H", wire))
            if each.address == EVERY:
                everywhere.append(Element(key, None, value))
            else:
                exact.append(Element((ipaddress.ip_address(each.address).packed, *key), None, value))
        named = {"published": exact, "published_everywhere": everywhere}
        assert self.table is not None
        return [self.table.elements(name, found, remove=remove) for name, found in named.items() if found]

    def forget(self, places: set[tuple[str, int]]) -> None:
        """Clients of these UDP ports begin anew: what they send goes to whom the port leads to then, or to nobody.

        Others at the same number of a port are left alone: what this host or somebody behind it asks elsewhere.
        """
        if self._filters is None or self._filters.closed:
            return
        exact = {(ipaddress.ip_address(own).packed, port) for own, port in places}
        everywhere = {port for own, port in places if own == EVERY}
        with self.switch.lock, contextlib.suppress(OSError):  # a kernel without ctnetlink waits for their end
            local = {each.interface.ip.packed for each in address.addresses(self._route)} if everywhere else set()

            def wanted(to: bytes, port: int, answering: bytes) -> bool:
                if (to, port) in exact:
                    return True
                ours = answering == self.there.packed or to in local or to[:1] == b"\x7f"
                return port in everywhere and ours

            conntrack.forget(self._filters, PROTOCOLS["udp"], wanted)

    # ---- ports on the wire ---------------------------------------------------------------------------------------

    def number(self, protocol: str) -> int:
        """A port of the switch's end that leads nowhere yet."""
        taken = self._numbers[protocol]
        for step in range(65535):
            number = (self._last + step) % 65535 + 1
            if number not in taken:
                self._last = number
                taken.add(number)
                return number
        raise SetupError(errno.EADDRNOTAVAIL, "publish a port", part="Network", cause="65535 are published already")

    def free(self, protocol: str, number: int) -> None:
        """Such a port leads nowhere any more."""
        self._numbers[protocol].discard(number)

    def close(self) -> None:
        """Remove it."""
        if not self._route.closed:
            if self._forwarded:
                FORWARDED.no_longer(self._route)
            if hasattr(self, "index"):
                self._route.tried([link.remove(self.index)])
            self._route.close()
        if self._filters is not None and not self._filters.closed:
            if self.table is not None:
                with contextlib.suppress(OSError):  # not with its socket alone: a forked child may have a copy
                    self.rules([self.table.remove()])
            self._filters.close()


def reserve(publish: Publish, port: int) -> socket.socket:
    """Hold the port, so that nobody else gets it: a socket that is bound, and to which nothing ever comes.

    Connections that a relay closed a moment ago are no hindrance, as long as nobody listens there.
    """
    kind = socket.SOCK_STREAM if publish.protocol == "tcp" else socket.SOCK_DGRAM
    version6 = ":" in publish.address
    sock = socket.socket(socket.AF_INET6 if version6 else socket.AF_INET, kind)
    try:
        if version6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind((publish.address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or publish.protocol != "tcp":
                raise
            _bind_anew(sock, publish.address, port)
    except OSError as error:
        sock.close()
        causes = {
            errno.EADDRINUSE: ("the port is in use on the host, or published by another network", "choose another"),
            errno.EADDRNOTAVAIL: ("the host has no such address", "name one of its own, or 0.0.0.0 for every one"),
            errno.EACCES: ("ports below 1024 need CAP_NET_BIND_SERVICE", "publish at a higher one"),
        }
        cause, remedy = causes.get(error.errno or 0, (None, None))
        raise SetupError(
            error.errno or errno.EIO,
            f"publish {publish.address}:{port}/{publish.protocol}",
            part="Interface",
            syscall="bind",
            cause=cause,
            remedy=remedy,
        ) from None
    return sock


def _bind_anew(sock: socket.socket, address: str, port: int) -> None:
    """Bind a TCP socket where connections that have ended are still remembered, for about a minute, and hold the port.

    With SO_REUSEADDR alone others could bind there with the same option (socket(7)). To listen makes sure that nobody
    else does, and marks the port as one that is not shared; the option is off again afterwards.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(0)
    sock.shutdown(socket.SHUT_RDWR)  # it stays bound
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def uplinks(sock: Socket) -> list[int]:
    """Indexes of the devices that lead beyond the host: those that a route by a gateway uses."""
    return sorted({route.index for route in address.routes(sock) if route.via is not None and route.via.version == 4})


class Forwarding:
    """The host's own devices forward while some network of this program needs it, and then as they did before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[tuple[int, int], int] = {}  # a network namespace, and how many need it there
        self._kept: dict[tuple[int, int], Kept] = {}

    def need(self, sock: Socket) -> None:
        """Switch forwarding on in the socket's network. A keeper undoes it if this program is killed."""
        place = _identity(sock)
        with self._lock:
            if self._users.get(place, 0) == 0:
                found = [index for index in uplinks(sock) if not link.forwards(sock, index)]
                if found:
                    self._kept[place] = keep([], [], [link.forwarding(index, on=False) for index in found])
                    sock.batch([link.forwarding(index) for index in found])
            self._users[place] = self._users.get(place, 0) + 1

    def no_longer(self, sock: Socket) -> None:
        """The last one has them as they were."""
        place = _identity(sock)
        with self._lock:
            self._users[place] -= 1
            if self._users[place] == 0:
                del self._users[place]
                kept = self._kept.pop(place, None)
                if kept is not None:
                    kept.close()


FORWARDED = Forwarding()


def _identity(sock: Socket) -> tuple[int, int]:
    fd = fcntl.ioctl(sock.fileno(), SIOCGSKNS)
    try:
        found = os.fstat(fd)
        return found.st_dev, found.st_ino
    finally:
        os.close(fd)
