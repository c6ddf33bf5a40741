"""The switch: a network namespace of its own with a bridge, to which members are attached. Asked by netlink alone."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from isolate.engine.descriptors import OwnedDescriptor
from isolate.errors import SetupError, UnsupportedError
from isolate.network import address, link, nft, ruleset, traffic
from isolate.network.forms import Form
from isolate.network.keeper import SIOCGSKNS, Bound, Kept, keep
from isolate.network.link import FORWARDING, Counters
from isolate.network.netlink import NETFILTER, ROUTE, Socket, Words, attach, framed, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolate.network.address import Address, Net
    from isolate.network.netlink import Failure, Message

__all__ = ["Plug", "Switch"]

#: A kernel with br_netfilter shows what goes from port to port of a bridge to the rules for what is routed as well, and
#: tracks its connections. That is for a firewall of the bridge; this one has rules of its own for its ports.
_BRIDGED = tuple((f"bridge/bridge-nf-call-{kind}tables", b"0") for kind in ("ip", "ip6", "arp"))
#: The index of a member's first interface, behind that of loopback.
_INNER = 2
#: IPv6 is forwarded by all devices of a network or by none, and only such a network answers for neighbours.
_IPV6 = (("ipv6/conf/all/forwarding", b"1"), ("ipv6/conf/all/proxy_ndp", b"1"))
_BRIDGE, _STANDING, _FIRST, _TURNS = 2, 4, 10, 1 << 28  # indexes of devices in the switch

#: The names of a pair of devices in the switch, of which the first is a port of the bridge.
_STANDING_NAMES = "s0", "s1"
#: The kernel's least: a device of so little has no IPv6, so it sends nothing by itself.
_LEAST_MTU = 68

#: In forms, in the places of what is a member's own: bytes that nothing else there has.
_MARK_INDEX, _MARK_FD, _MARK_MAC = 0x6B5A49F1, 0x7C6B5A12, "c6:39:e4:7b:d1:a8"
_MARK_ADDRESSES = (ipaddress.IPv4Address(0xF1E2D3C5), ipaddress.IPv6Address(0x9D3EB7F1C46A58E29B7D13F5A86CE0D7))


#: Values of a form, for a member with an IPv4 address alone, and with one of IPv6 too.
_VALUES = {1: struct.Struct("=4x16sI6s4s"), 2: struct.Struct("=4x16sI6s4s16s")}
_AT_FD, _AT_PORT, _AT_INDEX, _AT_MAC, _AT_ADDRESSES = 0, 4, 20, 24, (30, 34)


@dataclass
class Plug:
    """One end of a wire in the switch, the other in a member's network."""

    number: int
    addresses: tuple[Address, ...]
    #: The bytes of the addresses.
    packed: tuple[bytes, ...]
    mac: bytes
    device: str = "eth0"
    mtu: int = 1500
    #: Whether its egress and its ingress are limited.
    egress: bool = False
    ingress: bool = False
    #: Bits a second each way, and bytes at once.
    rate: int | None = None
    burst: int | None = None
    #: Whether it has a route to everywhere by the switch, of IPv4 and of IPv6.
    everywhere: bool = False
    everywhere6: bool = False
    #: Further routes: a network and the member (or the switch, None) that is the way there.
    routes: tuple[tuple[Net, Address | None], ...] = ()
    #: The index of the device inside, if it is free; 0: the kernel chooses.
    inner: int = 0
    attached: bool = field(default=False, init=False)
    shaped: bool = field(default=False, init=False)

    @property
    def limited(self) -> bool:
        """Either is limited: it is not on the bridge, but on a port of its own."""
        return self.egress or self.ingress

    @property
    def port(self) -> str:
        """The name of its end in the switch."""
        return f"{'r' if self.limited else 'p'}{self.number}"

    @property
    def port_mac(self) -> str:
        """The hardware address of its end in the switch, where that matters: of a limited member's port."""
        return _mac(0x8000 | self.number)

    @property
    def index(self) -> int:
        """The index of its end in the switch."""
        return _FIRST + self.number

    @property
    def turn(self) -> tuple[int, str]:
        """Index and name of the device that what it sends goes through, where that is shaped."""
        return _TURNS + self.number, f"i{self.number}"


_thread = threading.get_ident


class Lock:
    """A lock that one thread may take several times; and what must not happen in between happens once it is let go.

    A finalizer runs wherever the collector comes, also in the middle of a request and its answer on this very thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner = 0
        self._depth = 0
        self._later: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = _thread()
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        last = self._depth == 0
        if last:
            self._owner = 0
        self._lock.release()
        while last and self._later:
            self._later.pop(0)()

    def call(self, function: Callable[[], None]) -> None:
        """Call it now, or, if this thread is in the middle of something, when that is done."""
        if self._owner == _thread():
            self._later.append(function)
        else:
            function()


class Switch:
    """A bridge in a namespace of its own, with the first address of each subnet. Any thread may call its methods."""

    def __init__(self, subnets: Sequence[Net], *, mtu: int = 1500, out: bool = False, names: bool = True) -> None:
        self.subnets: dict[int, Net] = {net.version: net for net in subnets}
        self.gateways: dict[int, Address] = {v: net.network_address + 1 for v, net in self.subnets.items()}
        self.mtu = mtu
        self.lock: Lock = Lock()
        bound = []
        if names:
            bound = [Bound(kind, str(gateway), 53) for gateway in self.gateways.values() for kind in ("udp", "tcp")]
        cut = [link.remove(name) for name in (ruleset.UPLINK, ruleset.BRIDGE_NAME)]
        #: Whether it forwards IPv6: else IPv6 passes among members on the bridge alone.
        self.routes6: bool = False
        self._forms: dict[tuple[object, ...], Form] = {}
        self._kept: Kept = keep(bound, cut, settings=(*_BRIDGED, *(_IPV6 if 6 in self.subnets else ())))
        try:
            route, filters, *listening = (socket.socket(fileno=fd) for fd in self._taken())
            self.route: Socket = Socket(ROUTE, made=route)
            self.filters: Socket = Socket(NETFILTER, made=filters)
            #: Sockets for names, at the gateways: of each UDP, then TCP.
            self.listening: list[socket.socket] = listening
            self.namespace: OwnedDescriptor = OwnedDescriptor(fcntl.ioctl(route, SIOCGSKNS))
            self._build(out)
        except BaseException:
            self.close()
            raise

    def _taken(self) -> list[int]:
        fds, self._kept.fds = self._kept.fds, []
        return fds

    def _build(self, out: bool) -> None:
        messages = [
            link.change(1, up=True, step="set loopback up"),
            link.bridge(ruleset.BRIDGE_NAME, index=_BRIDGE, mac=_mac(0xFFFF), mtu=self.mtu),
            link.change(_BRIDGE, ipv4={FORWARDING: 1}, step="forward IPv4 from the bridge"),
            address.proxy_at_once(_BRIDGE),
            *self._standing(),
        ]
        for version, net in self.subnets.items():
            gateway = self.gateways[version]
            messages.append(address.add(_BRIDGE, ipaddress.ip_interface((gateway, net.prefixlen))))
            if version == 6:
                messages.append(address.local(ipaddress.ip_network(gateway), index=_BRIDGE))
        self.routes6 = 6 in self.subnets and address.forwards6(self.route)
        if self.routes6:
            messages.append(address.proxy_at_once(_BRIDGE, 6))
            # Neighbours are asked for by a link-local address, and the kernel's own is not used for its first seconds.
            messages.append(address.add(_BRIDGE, ipaddress.ip_interface("fe80::1/64")))
        self.route.batch(messages)
        for name in (_STANDING_NAMES[0], ruleset.BRIDGE_NAME):
            link.settle(self.route, name)
        self.filters.transaction(nft.SUBSYSTEM, ruleset.base(out=out))

    def _standing(self) -> list[Message]:
        """A port that keeps the bridge's carrier up, whoever comes and goes; nothing ever moves by it.

        When the last port goes, the bridge loses its carrier: the kernel then forgets for whom the bridge answers, and
        when the next one comes, the bridge's own packets are dropped until a worker has noticed that.
        """
        name, peer = _STANDING_NAMES
        return [
            link.veth(
                name, peer, index=_STANDING, peer_index=_STANDING + 1, master=_BRIDGE, mtu=self.mtu, peer_mtu=_LEAST_MTU
            ),
            link.silent(_STANDING),
            link.change(_STANDING + 1, up=True, step="have the bridge's carrier up"),
        ]

    def rules(self, messages: Sequence[Message]) -> None:
        """Change the switch's tables; all or nothing."""
        if messages:
            with self.lock:
                self.filters.transaction(nft.SUBSYSTEM, messages)

    # ---- members -------------------------------------------------------------------------------------------------

    def plug_in(self, plug: Plug, inside: Socket, rules: Sequence[Message] = ()) -> None:
        """Make the wire to the network that the socket ``inside`` is of, with addresses and routes, all up. The lock is
        held.

        :raises SetupError: it cannot be made; nothing is left of it.
        """
        try:
            plug.attached = True
            if rules or not self._plainly(plug, inside):
                self._one_by_one(plug, inside, rules)
            if plug.inner != _INNER:
                self._ways_back(plug, inside)
        except BaseException:
            self.unplug(plug)
            raise

    def _one_by_one(self, plug: Plug, inside: Socket, rules: Sequence[Message]) -> None:
        """Each request by itself. What failed by a form fails again, and the error has words of its own."""
        namespace = fcntl.ioctl(inside.fileno(), SIOCGSKNS)
        try:
            self._wire(plug, namespace)
        finally:
            os.close(namespace)
        if plug.rate is not None:
            self.shape(plug)
        admitted = ruleset.admitted(plug.index, plug.addresses, egress=plug.egress, ingress=plug.ingress)
        self.filters.transaction(nft.SUBSYSTEM, [*admitted, *rules])
        inside.batch(self._inside(plug, plug.inner or link.index_of(inside, plug.device)))
        link.settle(self.route, plug.port)

    def _plainly(self, plug: Plug, inside: Socket) -> bool:
        """Attach a member like many others by requests that were put together when the first one came.

        False for others, and if something failed; nothing is left of it.
        """
        if plug.limited or plug.rate is not None or plug.routes or not plug.inner:
            return False
        port, own = b"p%d" % plug.number, plug.packed
        key = len(port), plug.device, plug.mtu, plug.inner, len(own), plug.everywhere, plug.everywhere6
        form = self._forms.get(key)
        if form is None:
            if len(self._forms) >= 64:  # names and sizes are the members' to choose
                self._forms.clear()
            form = self._forms[key] = self._form(plug)
        values = _VALUES[len(own)].pack(port, _FIRST + plug.number, plug.mac, *own)
        failed = attach(self.route, self.filters, inside, form, values)
        if failed > 2:
            self.rules(ruleset.admitted(plug.index, plug.addresses, remove=True))
        if failed > 1:
            self.route.tried([link.remove(plug.index)])
        return not failed

    def _form(self, plug: Plug) -> Form:
        marked = replace(plug, mac=link.mac_bytes(_MARK_MAC), addresses=_MARK_ADDRESSES[: len(plug.addresses)])
        port = "~" * len(plug.port)
        wire = [self._pair(marked, _MARK_FD, port, _MARK_INDEX)]
        admitted = ruleset.admitted(_MARK_INDEX, marked.addresses)
        inside = self._inside(marked, plug.inner)
        return Form(
            [
                (packed(wire), len(wire)),
                (framed(nft.SUBSYSTEM, admitted), len(admitted) + 2),
                (packed(inside), len(inside)),
            ],
            [
                (_MARK_FD.to_bytes(4, "little"), _AT_FD),
                (port.encode(), _AT_PORT),
                (_MARK_INDEX.to_bytes(4, "little"), _AT_INDEX),
                (marked.mac, _AT_MAC),
                *((each.packed, at) for each, at in zip(marked.addresses, _AT_ADDRESSES, strict=False)),
            ],
        )

    def _pair(self, plug: Plug, namespace: int, port: str, index: int) -> Message:
        return link.veth(
            port,
            plug.device,
            namespace,
            index=index,
            peer_index=plug.inner,
            mtu=plug.mtu,
            mac=plug.port_mac if plug.limited else None,
            peer_mac=link.mac_text(plug.mac),
            master=0 if plug.limited else _BRIDGE,
        )

    def _wire(self, plug: Plug, namespace: int) -> None:
        """The pair of devices, one end in the member's network."""
        while True:
            messages = [self._pair(plug, namespace, plug.port, plug.index), *self._own_port(plug)]
            failures = self.route.tried(messages)
            if not failures:
                return
            if not plug.inner or failures[0].index or failures[0].errno != errno.EBUSY:
                raise self.route.error(failures[0], messages[failures[0].index].step)
            plug.inner = 0  # another device has the index

    def shape(self, plug: Plug, impairment: traffic.Impairment | None = None) -> None:
        """Have its rate hold both ways, and what is to happen to packets.

        :raises UnsupportedError: the kernel has no netem.
        """
        index, name = plug.turn
        with self.lock:
            messages = traffic.both_ways(plug.index, index, name, plug.rate, plug.burst, impairment)
            if messages or plug.shaped:
                self.route.tried([*traffic.cleared(plug.index), link.remove(index)])
            plug.shaped = bool(messages)
            failures = self.route.tried(messages)
            if failures:
                raise _shaping_error(self.route, failures[0], messages)

    def _own_port(self, plug: Plug) -> list[Message]:
        """A limited member's port: routed, and the bridge answers for the member."""
        if not plug.limited:
            return []
        messages = [link.change(plug.index, ipv4={FORWARDING: 1}, step=f"forward IPv4 from {plug.port}")]
        for own in plug.addresses:
            messages += [
                address.route(ipaddress.ip_network(own), index=plug.index),
                address.neighbour(plug.index, own, plug.mac),
                address.proxy(_BRIDGE, own),
            ]
        return messages

    def _inside(self, plug: Plug, index: int) -> list[Message]:
        messages = []
        for own in plug.addresses:
            length = own.max_prefixlen if plug.limited else self.subnets[own.version].prefixlen
            messages.append(address.given(index, own, length))
        messages.append(link.change(index, up=True, step=Words("set {} up", plug.device)))
        for own in plug.addresses:
            if own.version == 6:
                messages.append(address.local(ipaddress.ip_network(own), index=index))
            gateway = self.gateways[own.version]
            everywhere = plug.everywhere if own.version == 4 else plug.everywhere6
            if plug.limited:
                messages.append(address.route(ipaddress.ip_network(gateway), index=index))
                if own.version == 6:  # it is an address of the bridge, for which no other port speaks
                    messages.append(address.neighbour(index, gateway, link.mac_bytes(plug.port_mac)))
                to = None if everywhere else self.subnets[own.version]
                messages.append(address.route(to, index=index, via=gateway, metric=index))
            elif everywhere:  # of several interfaces the first is the way out
                messages.append(address.route(None, index=index, via=gateway, metric=index))
        for net, via in plug.routes:
            messages.append(address.route(net, index=index, via=via or self.gateways[net.version]))
        return messages

    def _ways_back(self, plug: Plug, inside: Socket) -> None:
        """Of a member that is in another network already, answers to those beyond leave by the interface that they
        were asked by. A kernel without policy routing has no such thing."""
        index = plug.inner or link.index_of(inside, plug.device)
        ways = [(own, plug.everywhere if own.version == 4 else plug.everywhere6) for own in plug.addresses]
        for own, everywhere in ways:
            if everywhere:
                inside.tried(address.way_back(own, self.gateways[own.version], index=index))

    def unplug(self, plug: Plug, rules: Sequence[Message] = (), *, wait: bool = True) -> None:
        """Remove the wire. No error if it is gone already.

        With ``wait`` both ends are gone when this returns, which takes the kernel some 20 ms. Without, the member's
        network is about to go, which takes the wire along.
        """
        with self.lock:
            if not plug.attached or self.route.closed:
                return
            plug.attached = False
            messages = [link.remove(plug.index)] if wait else [link.change(plug.index, up=False)]
            if plug.shaped:
                messages.append(link.remove(plug.turn[0]))
            if plug.limited:
                messages += [address.proxy(_BRIDGE, own, remove=True) for own in plug.addresses]
            self.route.tried(messages)
            admitted = ruleset.admitted(
                plug.index, plug.addresses, egress=plug.egress, ingress=plug.ingress, remove=True
            )
            for message in [*admitted, *rules]:  # each by itself: some may never have been put in
                try:
                    self.filters.transaction(nft.SUBSYSTEM, [message])
                except OSError:
                    pass

    def cut(self, plug: Plug) -> None:
        """Remove what is left of an earlier wire."""
        with self.lock:
            self.route.tried([link.remove(plug.index)])

    def left(self, plug: Plug) -> bool:
        """Whether an earlier wire's end is still there, so that its number and its addresses cannot be used again."""
        with self.lock:
            try:
                link.named(self.route, plug.index)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return False
                raise
            return True

    def counters(self, plug: Plug) -> Counters:
        """The traffic of the member, sent and received, as it sees it."""
        with self.lock:
            here = link.counters(self.route, plug.index)
        return Counters(
            here.sent_bytes,
            here.received_bytes,
            here.sent_packets,
            here.received_packets,
            here.sent_dropped,
            here.received_dropped,
            here.sent_errors,
            here.received_errors,
        )

    # ---- life ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take it down. Wires to it are cut at once; the kernel takes the namespace away a little later."""
        with self.lock:
            route: Socket | None = getattr(self, "route", None)
            if route is not None and not route.closed:
                route.tried([link.change(name, up=False) for name in (ruleset.UPLINK, ruleset.BRIDGE_NAME)])
            for each in (route, getattr(self, "filters", None), *getattr(self, "listening", ())):
                if each is not None:
                    each.close()
            namespace: OwnedDescriptor | None = getattr(self, "namespace", None)
            if namespace is not None:
                namespace.close()
            self._kept.close()


def _shaping_error(route: Socket, failure: Failure, messages: Sequence[Message]) -> SetupError:
    step = str(messages[failure.index].step)
    if failure.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
        return route.error(failure, step)
    needed = "netem (CONFIG_NET_SCH_NETEM)" if "impair" in step else "tbf, ifb, u32 and mirred"
    return UnsupportedError(
        failure.errno,
        step,
        part="Network",
        syscall="sendto",
        cause=f"this kernel was built without {needed}, or the module cannot be loaded",
        remedy="of impairments, loss alone needs no netem" if "impair" in step else None,
    )


def _mac(number: int) -> str:
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x69, 0x73, 0x6F, number >> 8, number & 0xFF))
