"""nftables by netlink: tables, chains, sets and maps, their elements, and rules (linux/netfilter/nf_tables.h).

A table is made with the flag "owner" (Linux 5.12): it belongs to the socket that made it, only that socket changes it,
and the kernel removes it when the socket goes, however that happens. What varies from member to member stands in sets
and maps, so the number of rules never grows.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from isolate.network.netlink import CREATE, Message, attribute, nested, text

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Chain", "Element", "Field", "Set", "Table"]

SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
INET, BRIDGE, NETDEV = 1, 7, 5
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
ACCEPT, DROP = 1, 0
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWELEMENTS, DELETE_ELEMENTS = 0, 2, 3, 6, 9, 12, 14
_DELRULE = 8
_OWNER = 2
_INTERVAL, _MAP, _CONCATENATED = 0x4, 0x8, 0x80


def _be(value: int, width: int = 4) -> bytes:
    return value.to_bytes(width, "big")


def _text(value: str) -> bytes:
    return value.encode("ascii")


class Field(NamedTuple):
    """A part of a set's key or a map's value: nft's number of the type, and its bytes."""

    kind: int
    size: int


# As `nft` numbers them (include/datatype.h), so that `nft list` shows what is there.
IPV4, IPV6, MAC, PROTOCOL, PORT, INDEX, NAME = (
    Field(7, 4),
    Field(8, 16),
    Field(9, 6),
    Field(12, 1),
    Field(13, 2),
    Field(20, 4),
    Field(41, 16),
)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def ifname(name: str) -> bytes:
    """A device's name as a key: 16 bytes."""
    return name.encode().ljust(16, b"\0")


class Element(NamedTuple):
    """An element of a set: the fields of its key, of the key's end in a set of intervals, and of a map's value."""

    key: tuple[bytes, ...]
    end: tuple[bytes, ...] | None = None
    value: tuple[bytes, ...] | None = None

    def packed(self, *, whole: bool) -> list[bytes]:
        """As attributes; ``whole=False``: without the value, as for removing it."""
        key = b"".join([part if not len(part) & 3 else _padded(part) for part in self.key])
        parts = [nested(1, attribute(1, key))]  # NFTA_SET_ELEM_KEY
        if self.end is not None:
            parts.append(nested(10, attribute(1, b"".join(map(_padded, self.end)))))  # NFTA_SET_ELEM_KEY_END
        if self.value is not None and whole:
            parts.append(nested(2, attribute(1, b"".join(map(_padded, self.value)))))  # NFTA_SET_ELEM_DATA
        return [nested(1, *parts)]  # NFTA_LIST_ELEM


class Set(NamedTuple):
    """A set, or with ``value`` a map; ``interval`` for keys that are ranges."""

    name: str
    key: tuple[Field, ...]
    value: tuple[Field, ...] = ()
    interval: bool = False


def _type(fields: tuple[Field, ...]) -> int:
    number = 0
    for field in fields:  # a concatenation: six bits a type
        number = number << 6 | field.kind
    return number


def _size(fields: tuple[Field, ...]) -> int:
    if len(fields) == 1:
        return fields[0].size
    return sum(field.size + -field.size % 4 for field in fields)


class Chain(NamedTuple):
    """A base chain: its name, its hook, its type (``filter``, ``nat``, ``route``), its priority, its policy."""

    name: str
    hook: int
    kind: str = "filter"
    priority: int = 0
    policy: int = ACCEPT


class Table:
    """The messages that make and change a table. Nothing is sent here."""

    def __init__(self, name: str, family: int = INET, *, owner: bool = True) -> None:
        self.name = name
        self.family = family
        self._frame = struct.pack(">BBH", family, 0, 0)
        self._owner = owner
        self._ids = 0

    def _message(self, kind: int, step: str, *parts: bytes, create: bool = False) -> Message:
        return Message(SUBSYSTEM << 8 | kind, CREATE if create else 0, self._frame + b"".join(parts), step)

    def create(self) -> Message:
        """The table itself."""
        flags = attribute(2, _be(_OWNER)) if self._owner else b""
        return self._message(_NEWTABLE, f"make the table {self.name}", text(1, self.name), flags, create=True)

    def remove(self) -> Message:
        """The table with all that is in it."""
        return self._message(_DELTABLE, f"remove the table {self.name}", text(1, self.name))

    def chain(self, chain: Chain) -> Message:
        """A base chain."""
        hook = nested(4, attribute(1, _be(chain.hook)), attribute(2, struct.pack(">i", chain.priority)))
        return self._message(
            _NEWCHAIN,
            f"make the chain {chain.name}",
            text(1, self.name),
            text(3, chain.name),
            hook,
            attribute(5, _be(chain.policy)),
            text(7, chain.kind),
            create=True,
        )

    def set(self, wanted: Set) -> Message:
        """A set or a map."""
        self._ids += 1
        concatenated = len(wanted.key) > 1 and wanted.interval  # of others the kernel needs no more than the size
        flags = (_INTERVAL if wanted.interval else 0) | (_MAP if wanted.value else 0)
        parts = [
            text(1, self.name),
            text(2, wanted.name),
            attribute(4, _be(_type(wanted.key))),
            attribute(5, _be(_size(wanted.key))),
        ]
        if wanted.value:
            parts += [attribute(6, _be(_type(wanted.value))), attribute(7, _be(_size(wanted.value)))]
        if concatenated:
            flags |= _CONCATENATED
            fields = b"".join(nested(1, attribute(1, _be(field.size))) for field in wanted.key)
            parts.append(nested(9, nested(2, fields)))  # NFTA_SET_DESC: NFTA_SET_DESC_CONCAT
        if wanted.key in ((NAME,), (INDEX,)):
            # For `nft list`, which cannot know otherwise: the bytes are in the machine's order.
            parts.append(attribute(13, struct.pack("=BBI", 0, 4, 1)))  # NFTNL_UDATA_SET_KEYBYTEORDER
        parts += [attribute(3, _be(flags)), attribute(10, _be(self._ids))]
        return self._message(_NEWSET, f"make the set {wanted.name}", *parts, create=True)

    def elements(self, where: str, elements: Iterable[Element], *, remove: bool = False) -> Message:
        """Elements of a set, put in or taken out."""
        packed = [part for element in elements for part in element.packed(whole=not remove)]
        verb = "take elements out of" if remove else "put elements into"
        return self._message(
            DELETE_ELEMENTS if remove else _NEWELEMENTS,
            f"{verb} the set {where}",
            text(1, self.name),
            text(2, where),
            nested(3, *packed),
            create=not remove,
        )

    def rule(self, chain: str, *expressions: bytes) -> Message:
        """A rule at the end of a chain."""
        return self._message(
            _NEWRULE,
            f"a rule of the chain {chain}",
            text(1, self.name),
            text(2, chain),
            nested(4, *expressions),
            create=True,
        )._replace(flags=CREATE | 0x800)

    def flush(self, chain: str) -> Message:
        """Every rule of a chain, taken out."""
        return self._message(_DELRULE, f"empty the chain {chain}", text(1, self.name), text(2, chain))


# ---- expressions -----------------------------------------------------------------------------------------------------

# Registers of four bytes: NFT_REG32_00 and on. A concatenation stands in consecutive ones.
REGISTER = 8


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *parts))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _be(value))


def meta(key: str, register: int = REGISTER) -> bytes:
    """Of the packet: ``protocol``, ``mark``, ``iif``, ``oif``, ``iifname``, ``oifname``, ``nfproto``, ``l4proto``."""
    keys = {"protocol": 1, "mark": 3, "iif": 4, "oif": 5, "iifname": 6, "oifname": 7, "nfproto": 15, "l4proto": 16}
    return _expression("meta", _number(1, register), _number(2, keys[key]))


def payload(base: str, offset: int, size: int, register: int = REGISTER) -> bytes:
    """Bytes of the packet, from its link, network or transport header on."""
    bases = {"link": 0, "network": 1, "transport": 2}
    return _expression("payload", _number(1, register), _number(2, bases[base]), _number(3, offset), _number(4, size))


def compare(data: bytes, *, unequal: bool = False, operator: int | None = None, register: int = REGISTER) -> bytes:
    """Go on only if a register holds (or does not hold) this; ``operator`` 2 to 5: <, <=, >, >=."""
    how = operator if operator is not None else int(unequal)
    return _expression("cmp", _number(1, register), _number(2, how), nested(3, attribute(1, data)))


def masked(mask: bytes, register: int = REGISTER) -> bytes:
    """A register and a mask."""
    return _expression(
        "bitwise",
        _number(1, register),
        _number(2, register),
        _number(3, len(mask)),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, bytes(len(mask)))),
    )


def lookup(name: str, *, into: int | None = None, inverted: bool = False, register: int = REGISTER) -> bytes:
    """Go on only if a register's key is in a set (or is not); ``into``: a map's value goes into this register."""
    parts = [text(1, name), _number(2, register)]
    if into is not None:
        parts.append(_number(3, into))
    if inverted:
        parts.append(_number(5, 1))
    return _expression("lookup", *parts)


def verdict(code: int) -> bytes:
    """The packet is accepted or dropped."""
    return _expression("immediate", _number(1, 0), nested(2, nested(2, _number(1, code))))


def immediate(data: bytes, register: int = REGISTER) -> bytes:
    """Put a value into a register."""
    return _expression("immediate", _number(1, register), nested(2, attribute(1, data)))


def reject() -> bytes:
    """The packet is dropped and its sender told (ICMP: administratively prohibited)."""
    return _expression("reject", _number(1, 2), attribute(2, b"\3"))  # NFT_REJECT_ICMPX_UNREACH, ADMIN_PROHIBITED


def reset() -> bytes:
    """A TCP connection is reset."""
    return _expression("reject", _number(1, 1), attribute(2, b"\0"))


def connection(key: str, register: int = REGISTER) -> bytes:
    """Something about the connection: ``state``, ``status``."""
    return _expression("ct", _number(1, register), _number(2, {"state": 0, "status": 2}[key]))


def established() -> list[bytes]:
    """Packets of a connection that was let through, and of what belongs to it."""
    return [connection("state"), masked(struct.pack("=I", 2 | 4)), compare(bytes(4), unequal=True)]


def translated() -> list[bytes]:
    """Packets of a connection whose destination was changed (IPS_DST_NAT)."""
    return [connection("status"), masked(struct.pack("=I", 0x20)), compare(bytes(4), unequal=True)]


def local_destination() -> list[bytes]:
    """Packets to an address of this network's own (fib daddr type local)."""
    return [
        _expression("fib", _number(1, REGISTER), _number(2, 3), _number(3, 2)),  # NFT_FIB_RESULT_ADDRTYPE, F_DADDR
        compare(struct.pack("=I", 2)),
    ]


def family(version: int) -> list[bytes]:
    """IPv4 or IPv6, in a table of both."""
    return [meta("nfproto"), compare(bytes([2 if version == 4 else 10]))]


def destination_nat(version: int, address: int = REGISTER, port: int | None = REGISTER + 1) -> bytes:
    """Send the packet on to the address and port that two registers hold."""
    parts = [_number(1, 1), _number(2, 2 if version == 4 else 10), _number(3, address)]
    if port is not None:
        parts.append(_number(5, port))
    return _expression("nat", *parts)


def masquerade() -> bytes:
    """The packet leaves with the address of the device that it leaves by."""
    return _expression("masq")


def chance(probability: float) -> list[bytes]:
    """Go on for this share of the packets."""
    share = round(probability * (1 << 30))
    number = _expression("numgen", _number(1, REGISTER), _number(2, 1 << 30), _number(3, 1))  # NFT_NG_RANDOM
    order = _expression(
        "byteorder", _number(1, REGISTER), _number(2, REGISTER), _number(3, 1), _number(4, 4), _number(5, 4)
    )
    return [number, order, compare(_be(share), operator=2)]


def limit(rate: int, burst: int) -> bytes:
    """Go on for at most so many packets a second."""
    return _expression(
        "limit", attribute(1, _be(rate, 8)), attribute(2, _be(1, 8)), _number(3, burst), _number(4, 0), _number(5, 0)
    )


def counter() -> bytes:
    """Count packets and bytes."""
    return _expression("counter")


def device(direction: str, name: str) -> list[bytes]:
    """By the device that the packet came in by (``iifname``) or leaves by; ``isou*`` is whatever begins so."""
    wanted = name[:-1].encode() if name.endswith("*") else ifname(name)
    return [meta(direction), compare(wanted)]
