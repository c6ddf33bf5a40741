"""The rules of the switch: its tables of nftables, made once; what varies from member to member are elements.

Members on the bridge reach one another without a look at their packets, but for this: what a port sends must bear the
addresses that were given to it. A member whose egress or ingress is limited is not on the bridge but on a port of its
own, so all that it sends and takes is routed, and connections are tracked. Egress is decided by the chain "forward";
what that accepts comes to the chain "taken", which decides of ingress.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from isolate.network import nft
from isolate.network.nft import REGISTER, Chain, Element, Field, Set, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolate.network.address import Address, Net
    from isolate.network.netlink import Message

__all__ = [
    "BRIDGE",
    "BRIDGE_NAME",
    "SWITCH",
    "UPLINK",
    "admitted",
    "base",
    "own_loopback",
    "published",
    "reach",
    "refused",
    "take",
]

#: Names of the switch's own devices.
BRIDGE_NAME, UPLINK = "br0", "up0"
SWITCH, BRIDGE = Table("isolate"), Table("isolate", nft.BRIDGE)
ICMP, TCP, UDP, ICMPV6 = b"\x01", b"\x06", b"\x11", b"\x3a"
_ETHER = {"ip": b"\x08\x00", "arp": b"\x08\x06", "ip6": b"\x86\xdd"}
_RAW = -300
_ROUTER, _NEIGHBOUR, _REDIRECT = 134, 136, 137  # ICMPv6: advertisements of a router, of a neighbour; a redirect
#: So many questions about names a second, of all members together: they are answered by this program's interpreter.
_QUESTIONS, _AT_ONCE = 4000, 1000
_SOURCE = {4: (12, 4), 6: (8, 16)}
_DESTINATION = {4: (16, 4), 6: (24, 16)}
ADDRESS: dict[int, Field] = {4: nft.IPV4, 6: nft.IPV6}
_R = REGISTER


def _ethernet(kind: str) -> list[bytes]:
    return [nft.meta("protocol"), nft.compare(_ETHER[kind])]


def _l4(protocol: bytes) -> list[bytes]:
    return [nft.meta("l4proto"), nft.compare(protocol)]


def source(version: int, register: int = _R) -> bytes:
    """The source address of a packet."""
    return nft.payload("network", *_SOURCE[version], register)


def destination(version: int, register: int = _R) -> bytes:
    """The destination address of a packet."""
    return nft.payload("network", *_DESTINATION[version], register)


def port(register: int = _R) -> bytes:
    """The destination port of a packet."""
    return nft.payload("transport", 2, 2, register)


def refused(table: Table, chain: str, *expressions: bytes) -> list[Message]:
    """Rules for packets that are dropped, and their sender told: by a reset of TCP, of all else by ICMP.

    An ICMP error that arrives while connect(2) still sends is put off until the next attempt, a second later, and the
    kernel sends few of them to one host (net.ipv4.icmp_ratelimit). A reset has neither limit.
    """
    return [
        table.rule(chain, *expressions, *_l4(TCP), nft.reset()),
        table.rule(chain, *expressions, nft.reject()),
    ]


def _bridge() -> list[Message]:
    """Packets at a port of the bridge: nothing but ARP, IPv4 and IPv6 with the port's own addresses may come in."""
    table = BRIDGE
    accept = nft.verdict(nft.ACCEPT)
    port_in = nft.meta("iif")
    sender = nft.payload("network", 14, 4, _R + 1)  # ARP: the sender's address
    link_local = [source(6), nft.masked(b"\xff\xc0" + bytes(14)), nft.compare(b"\xfe\x80" + bytes(14))]
    discovery = [*_ethernet("ip6"), *_l4(ICMPV6), nft.payload("transport", 0, 1)]
    target = nft.payload("transport", 8, 16, _R + 1)
    elsewhere = [nft.payload("transport", 8, 2), nft.masked(b"\xff\xc0"), nft.compare(b"\xfe\x80", unequal=True)]
    drop = nft.verdict(nft.DROP)
    return [
        table.create(),
        *(table.set(Set(f"members{v}", (nft.INDEX, ADDRESS[v]))) for v in (4, 6)),
        table.chain(Chain("prerouting", nft.PREROUTING, policy=nft.DROP)),
        table.rule("prerouting", *_ethernet("ip"), port_in, source(4, _R + 1), nft.lookup("members4"), accept),
        # Only the switch is a router, and no member may announce another member's address.
        *(table.rule("prerouting", *discovery, nft.compare(bytes([kind])), drop) for kind in (_ROUTER, _REDIRECT)),
        table.rule(
            "prerouting",
            *discovery,
            nft.compare(bytes([_NEIGHBOUR])),
            *elsewhere,
            port_in,
            target,
            nft.lookup("members6", inverted=True),
            drop,
        ),
        table.rule("prerouting", *_ethernet("ip6"), port_in, source(6, _R + 1), nft.lookup("members6"), accept),
        table.rule("prerouting", *_ethernet("arp"), port_in, sender, nft.lookup("members4"), accept),
        # Neighbour discovery: by link-local addresses, and by none at all while an address is looked for.
        table.rule("prerouting", *_ethernet("ip6"), *link_local, accept),
        table.rule("prerouting", *_ethernet("ip6"), source(6), nft.compare(bytes(16)), accept),
    ]


def _names() -> list[Message]:
    """Questions about names, from members: so many and no more, also of what looks like a connection."""
    messages = []
    for protocol in (UDP, TCP):
        rule = [nft.meta("iifname"), nft.compare(nft.ifname(UPLINK), unequal=True), *_l4(protocol), port()]
        question = [*rule, nft.compare(struct.pack(">H", 53))]
        limited = nft.limit(_QUESTIONS, _AT_ONCE)
        messages.append(SWITCH.rule("input", *question, limited, nft.verdict(nft.ACCEPT)))
        messages.append(SWITCH.rule("input", *question, nft.verdict(nft.DROP)))
    return messages


def _listed(chain: str, name: str, version: int) -> list[Message]:
    """Accept the connections in the sets of that name: from one address to another, by port, and by address alone."""
    accept = nft.verdict(nft.ACCEPT)
    size = 1 if version == 4 else 4  # registers that an address takes
    there = _R + size
    pair = [*nft.family(version), source(version), destination(version, there)]
    return [
        SWITCH.rule(
            chain,
            *pair,
            nft.meta("l4proto", there + size),
            port(there + size + 1),
            nft.lookup(f"{name}_ports{version}"),
            accept,
        ),
        SWITCH.rule(chain, *pair, nft.lookup(f"{name}{version}"), accept),
    ]


def _nowhere() -> list[Message]:
    """Only hosts' own IPv6 addresses may be reached: a program there may take ::ffff:127.0.0.1 for its loopback."""
    rule = [*nft.device("oifname", UPLINK), *nft.family(6)]
    for mask, prefix in ((0xE0, 0x20), (0xFE, 0xFC)):  # 2000::/3, fc00::/7
        inside = bytes([mask]) + bytes(15), bytes([prefix]) + bytes(15)
        rule += [destination(6), nft.masked(inside[0]), nft.compare(inside[1], unequal=True)]
    return refused(SWITCH, "forward", *rule)


def _pairs(name: str) -> list[Message]:
    """The sets for :func:`_listed`: where from, where to, and the protocol and the port there."""
    return [
        SWITCH.set(Set(f"{name}{suffix}{v}", (ADDRESS[v], ADDRESS[v], *more), interval=True))
        for suffix, more in (("", ()), ("_ports", (nft.PROTOCOL, nft.PORT)))
        for v in (4, 6)
    ]


def base(*, out: bool) -> list[Message]:
    """The tables of a new switch. ``out``: members whose egress is not limited may use the uplink."""
    table = SWITCH
    accept, drop = nft.verdict(nft.ACCEPT), nft.verdict(nft.DROP)
    limited = [nft.meta("iif"), nft.lookup("limited")]
    link_local = (b"\xff\xc0" + bytes(14), b"\xfe\x80" + bytes(14))
    unlike_link_local = [source(6), nft.masked(link_local[0]), nft.compare(link_local[1], unequal=True)]
    messages = [
        *_bridge(),
        table.create(),
        *(table.set(Set(name, (nft.INDEX,))) for name in ("limited", "egress", "ingress")),
        *(table.set(Set(f"members{v}", (nft.INDEX, ADDRESS[v]))) for v in (4, 6)),
        *_pairs("reach"),
        *_pairs("take"),
        table.set(Set("published", (nft.PROTOCOL, nft.PORT), (nft.IPV4, nft.PORT))),
        table.chain(Chain("spoofed", nft.PREROUTING, priority=_RAW)),
        table.chain(Chain("input", nft.INPUT, policy=nft.DROP)),
        table.chain(Chain("forward", nft.FORWARD, policy=nft.DROP)),
        table.chain(Chain("taken", nft.FORWARD, priority=10)),
        table.chain(Chain("publish", nft.PREROUTING, "nat", -100)),
        table.chain(Chain("masquerade", nft.POSTROUTING, "nat", 100)),
        # A port of its own: only with its own addresses; of IPv6 also to find its neighbour, which is never forwarded.
        *(
            table.rule(
                "spoofed",
                *limited,
                *nft.family(v),
                *(unlike_link_local if v == 6 else ()),
                nft.meta("iif"),
                source(v, _R + 1),
                nft.lookup(f"members{v}", inverted=True),
                drop,
            )
            for v in (4, 6)
        ),
        *_names(),
        table.rule("input", *nft.established(), accept),
        table.rule("input", *_l4(ICMP), accept),
        table.rule("input", *_l4(ICMPV6), accept),
        table.rule("forward", *nft.established(), accept),
        table.rule("forward", *nft.device("iifname", UPLINK), *nft.translated(), accept),
        table.rule("forward", *nft.device("iifname", UPLINK), drop),
        *_nowhere(),
        *(rule for v in (4, 6) for rule in _listed("forward", "reach", v)),
        *refused(table, "forward", nft.meta("iif"), nft.lookup("egress")),
        table.rule("taken", *nft.established(), accept),
        # A published port is the host's affair: it is limited by the address that it is published at.
        table.rule("taken", *nft.device("iifname", UPLINK), *nft.translated(), accept),
        *(rule for v in (4, 6) for rule in _listed("taken", "take", v)),
        *refused(table, "taken", nft.meta("oif"), nft.lookup("ingress")),
    ]
    if out:
        messages.append(table.rule("forward", *nft.device("oifname", UPLINK), accept))
    else:
        messages += refused(table, "forward", *nft.device("oifname", UPLINK))
    messages += [
        # To a member on a port of its own, from the bridge or from another of them.
        table.rule("forward", accept),
        table.rule(
            "publish",
            *nft.device("iifname", UPLINK),
            *nft.family(4),
            nft.meta("l4proto"),
            port(_R + 1),
            nft.lookup("published", into=_R),
            nft.destination_nat(4),
        ),
        table.rule("masquerade", *nft.device("oifname", UPLINK), nft.masquerade()),
    ]
    return messages


def own_loopback() -> list[Message]:
    """The table of a sandbox's own network: nothing leaves it for addresses of loopback.

    No capability is needed to send there by another device: a socket that is bound to it (SO_BINDTODEVICE) passes over
    the addresses of this network's own. A helper at the other end takes them for its host's. Only CAP_NET_ADMIN in this
    network could change the table, which goes with it.
    """
    table = Table("isolate", owner=False)
    leaving = [nft.meta("oifname"), nft.compare(nft.ifname("lo"), unequal=True)]
    first = [(4, 0xFF, 0x7F), (4, 0xFF, 0), (6, 0xE0, 0)]  # 127.0.0.0/8, 0.0.0.0/8; ::/3: ::1, ::ffff:127.0.0.1
    messages = [table.create(), table.chain(Chain("output", nft.OUTPUT))]
    for version, mask, prefix in first:
        rest = bytes(3 if version == 4 else 15)
        there = [destination(version), nft.masked(bytes([mask]) + rest), nft.compare(bytes([prefix]) + rest)]
        messages.append(table.rule("output", *leaving, *nft.family(version), *there, nft.verdict(nft.DROP)))
    return messages


def admitted(
    index: int, addresses: Iterable[Address], *, egress: bool = False, ingress: bool = False, remove: bool = False
) -> list[Message]:
    """A port of the switch may send with these addresses, or no longer; what it sends and takes may be limited."""
    limited = egress or ingress
    name = struct.pack("=I", index)
    messages = []
    for version in (4, 6):
        own = [Element((name, a.packed)) for a in addresses if a.version == version]
        if own and not limited:
            messages.append(BRIDGE.elements(f"members{version}", own, remove=remove))
        elif own:
            messages.append(SWITCH.elements(f"members{version}", own, remove=remove))
    for where, wanted in (("limited", limited), ("egress", egress), ("ingress", ingress)):
        if wanted:
            messages.append(SWITCH.elements(where, [Element((name,))], remove=remove))
    return messages


def reach(member: Address, to: Net, ports: tuple[int, int] | None, protocol: int | None) -> Message:
    """A member whose egress is limited may open connections there."""
    return _put("reach", (member, member), (to[0], to[-1]), ports, protocol)


def take(member: Address, source: Net, ports: tuple[int, int] | None, protocol: int | None) -> Message:
    """A member whose ingress is limited takes connections from there."""
    return _put("take", (source[0], source[-1]), (member, member), ports, protocol)


def _put(
    name: str,
    source: tuple[Address, Address],
    to: tuple[Address, Address],
    ports: tuple[int, int] | None,
    protocol: int | None,
) -> Message:
    """An element of one of :func:`_pairs`: from the first to the last address, and port."""
    version = to[0].version
    first, last = ((source[i].packed, to[i].packed) for i in (0, 1))
    if ports is None or protocol is None:
        return SWITCH.elements(f"{name}{version}", [Element(first, last)])
    low, high = ((bytes([protocol]), struct.pack(">H", p)) for p in ports)
    return SWITCH.elements(f"{name}_ports{version}", [Element((*first, *low), (*last, *high))])


def published(port_here: int, protocol: int, to: Address, port_there: int, *, remove: bool = False) -> Message:
    """A port of the switch's end of the uplink leads to a member's."""
    key = (bytes([protocol]), struct.pack(">H", port_here))
    element = Element(key, None, (to.packed, struct.pack(">H", port_there)))
    return SWITCH.elements("published", [element], remove=remove)


def undone(message: Message) -> Message:
    """The message that takes an element of :func:`reach` or :func:`take` out again."""
    return message._replace(kind=nft.SUBSYSTEM << 8 | nft.DELETE_ELEMENTS, flags=0, step="take a rule out again")
