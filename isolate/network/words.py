"""The words that describe networks: subnets, host names, published ports, rates and rules of reach.

Everything is checked here, before anything is made. A value that could be meant in two ways is refused.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from isolate.errors import ConflictError
from isolate.kernel import checks
from isolate.kernel.checks import is_int, keywords

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from isolate.network.address import Net

__all__ = ["Egress", "Ingress", "Publish", "Reach", "host_name", "ports", "publications", "rate", "subnet"]

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)\Z")
_LABEL_BELOW = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?\Z")
#: The largest range of ports to publish: each port is an element of the kernel's map, and a reservation here.
MOST_PORTS = 4096
PROTOCOLS = {"tcp": 6, "udp": 17}
#: The address that stands for every one.
EVERY = "0.0.0.0"

# Ports are int or str, also mixed in one mapping, whose keys type checkers take for one type: they are checked here.
PublishLike: TypeAlias = "Mapping[Any, Any] | Iterable[Publish]"


def host_name(value: object, what: str = "name", *, underscores: bool = False) -> str:
    """A host name in lower case: labels of letters, digits and hyphens, with dots between (RFC 1123).

    :param underscores: allow them in all labels but the last two. DNS does (RFC 2181, section 11), and servers have
        such names below a domain; no registry gives out a domain with one.
    :raises ValueError: it is none, or it would be read as an address.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {value!r}")
    name = value.lower().removesuffix(".")
    labels = name.split(".")
    below = len(labels) - 2 if underscores else 0
    wrong = not all((_LABEL_BELOW if i < below else _LABEL).match(label) for i, label in enumerate(labels))
    if not name or len(name) > 253 or wrong or labels[-1].isdigit():
        hint = _name_hint(value, underscores)
        raise ValueError(
            f"{what} must be a host name (letters, digits and hyphens, at most 63 in a label), not {value!r}{hint}"
        )
    return name


def _name_hint(value: str, underscores: bool) -> str:
    """A hint for a value that is no host name: the words to write instead."""
    if re.search(r"[:/]", value):
        return "; write the name alone, without a scheme, a port and a path"
    if "_" not in value:
        return ""
    where = " in the last two labels" if underscores else ""
    return f"; an underscore is not allowed{where}: write a hyphen"


def subnet(value: object, what: str, version: int | None = None) -> Net:
    """A network with room for a gateway and a member: ``"10.88.0.0/24"``.

    :raises ValueError: it is none, it has bits beside its prefix, or it is too small, too large, or not to be used.
    """
    if not isinstance(value, (str, ipaddress.IPv4Network, ipaddress.IPv6Network)):
        raise TypeError(f"{what} must be a network such as '10.88.0.0/24', not {value!r}")
    try:
        net = ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{what} must be a network such as '10.88.0.0/24': {error}") from None
    if version is not None and net.version != version:
        raise ValueError(f"{what} must be an IPv{version} network, not {value!r}")
    least, most = (8, 30) if net.version == 4 else (48, 126)
    if not least <= net.prefixlen <= most:
        raise ValueError(f"{what} must have a prefix from {least} to {most}, not {value!r}")
    if net.is_multicast or net.is_loopback or net.is_unspecified or (net.is_reserved and net.version == 4):
        raise ValueError(f"{what} cannot be a network of loopback, multicast or reserved addresses: {value!r}")
    return net


def rate(value: int | str | None, what: str = "rate") -> int | None:
    """Bits per second: an int, or ``"20M"``, ``"20Mbit"``, ``"1.5Gbit"`` in powers of ten; None for no limit."""
    return None if value is None else checks.rate(what, value)


def ports(value: int | str, what: str) -> tuple[int, int]:
    """The first and the last port of ``80`` or ``"8000-8010"``."""
    if not (is_int(value) or isinstance(value, str)):
        raise TypeError(f"{what} must be a port or a range of ports, not {value!r}")
    found = _PORTS.match(str(value))
    if found is None:
        raise ValueError(f"{what} must be a port or a range such as '8000-8010', not {value!r}")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{what} must be from 1 to 65535, the lower first, not {value!r}")
    return first, last


def _protocol(text: str, what: str) -> tuple[str, str]:
    """The text before ``/tcp`` or ``/udp``, and which of both; tcp without."""
    rest, slash, word = text.rpartition("/")
    if not slash:
        return text, "tcp"
    if word not in PROTOCOLS:
        raise ValueError(f"{what}: {word!r} is no protocol; there are tcp and udp")
    return rest, word


@keywords
@dataclass(frozen=True)
class Publish:
    """A port of the host's that leads to a port of a member.

    ``host`` and ``port`` are ports, or ranges of the same length (``"8000-8010"``). ``address`` is the host's address
    that it is reached at: its loopback, unless another is named; ``"0.0.0.0"`` is every IPv4 address, ``"::"`` every
    IPv6 address.
    """

    host: int | str
    port: int | str
    protocol: str = "tcp"
    address: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"Publish: protocol must be 'tcp' or 'udp', not {self.protocol!r}")
        outside, inside = ports(self.host, "Publish: host"), ports(self.port, "Publish: port")
        if outside[1] - outside[0] != inside[1] - inside[0]:
            raise ValueError(f"Publish: {self.host} and {self.port} must be as many ports")
        if outside[1] - outside[0] >= MOST_PORTS:
            raise ValueError(f"Publish: at most {MOST_PORTS} ports in one range")
        try:
            found = ipaddress.ip_address(self.address)
        except ValueError:
            raise ValueError(f"Publish: address must be an address of the host, not {self.address!r}") from None
        if isinstance(found, ipaddress.IPv6Address) and (found.scope_id or found.ipv4_mapped):
            raise ValueError(f"Publish: address must be an IPv4 address or a whole IPv6 address, not {self.address!r}")
        object.__setattr__(self, "address", str(found))

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Each port of the host's, and the member's that it leads to."""
        first, last = ports(self.host, "host")
        inside, _ = ports(self.port, "port")
        return [(first + i, inside + i) for i in range(last - first + 1)]

    def __str__(self) -> str:
        return f"{f'[{self.address}]' if self.version == 6 else self.address}:{self.host}/{self.protocol}"

    @property
    def version(self) -> int:
        """The IP version of the address: 4 or 6."""
        return 6 if ":" in self.address else 4


def publications(value: PublishLike) -> tuple[Publish, ...]:
    """``{8080: 80, "127.0.0.1:5353/udp": 53, "8000-8010": "9000-9010"}``, or :class:`Publish` objects."""
    found: list[Publish] = []
    if isinstance(value, dict):
        for key, inside in value.items():
            text, protocol = _protocol(str(key), "publish")
            address, _, outside = text.rpartition(":")
            if address.startswith("[") and address.endswith("]") and ":" in address:
                address = address[1:-1]
            elif ":" in address:
                raise ValueError(f"publish: an IPv6 address stands in brackets, as in '[::1]:8080', not {key!r}")
            if not (is_int(key) or isinstance(key, str)):
                raise TypeError(f"publish: a key must be a port of the host's, not {key!r}")
            host = key if isinstance(key, int) else outside
            found.append(Publish(host, inside, protocol, address or "127.0.0.1"))
    elif isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"publish must be a mapping such as {{8080: 80}}, not {value!r}")
    else:
        for each in value:
            if not isinstance(each, Publish):
                raise TypeError(f"publish must be a mapping such as {{8080: 80}}, or Publish objects, not {each!r}")
            found.append(each)
    for i, each in enumerate(found):
        for other in found[:i]:
            every = {EVERY, "::"} & {each.address, other.address}
            same = each.address == other.address or (each.version == other.version and bool(every))
            both = {host for host, _ in each.pairs} & {host for host, _ in other.pairs}
            if same and both and each.protocol == other.protocol:
                raise ConflictError(f"publish: the host's port {min(both)}/{each.protocol} is published twice")
    return tuple(found)


@keywords
@dataclass(frozen=True)
class Reach:
    """Something that may be reached, or taken from: a member by its name or addresses, and ports of a protocol.

    None is every one.
    """

    to: str | Net | None
    ports: tuple[int, int] | None = None
    protocol: str | None = None


def _reach(text: object, what: str, *, anyone: bool = False) -> Reach:
    if not isinstance(text, str):
        raise TypeError(f"{what} takes str such as 'db:5432' or '203.0.113.0/24:443', not {text!r}")
    head, protocol = text, "tcp"
    if "://" in text:
        raise ValueError(f"{what}: {text!r} has a scheme: write a member's name and a port, such as 'db:5432'")
    if text.startswith("*") and not anyone:
        raise ValueError(f"{what}: '*' is no target: '0.0.0.0/0:443' and '[::/0]:443' are that port of every address")
    if re.search(r"/[a-z]+\Z", text):
        head, protocol = _protocol(text, what)
    place, port = head, ""
    if head.startswith("["):
        place, bracket, rest = head[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{what}: {text!r} is not an address in brackets and a port")
        port = rest[1:]
    elif head.count(":") == 1:
        place, _, port = head.partition(":")
    found = ports(port, f"{what}: the port in {text!r}") if port else None
    if found is None and head != text:
        raise ValueError(f"{what}: {text!r} names a protocol, but no port")
    if place == "*" and anyone:
        return Reach(None, found, protocol if found else None)
    try:
        net = ipaddress.ip_network(place)
    except ValueError:
        if re.fullmatch(r"[0-9./:a-fA-F]*[/:][0-9a-fA-F:./]*|[0-9.]+", place):
            raise ValueError(f"{what}: {place!r} is not an address or network with its last bits 0") from None
        return Reach(host_name(place, what), found, protocol if found else None)
    return Reach(net, found, protocol if found else None)


@keywords
@dataclass(frozen=True)
class Egress:
    """The targets to which an interface may open connections; all others are refused. Answers to others' pass.

    ``to`` lists members by name, and addresses or networks, each with a port, a range of ports, or none for every port
    and protocol: ``"db:5432"``, ``"203.0.113.0/24:443"``, ``"db:53/udp"``, ``"198.51.100.7:8000-8010"``. Without any it
    may open none at all. Addresses outside of the network also need a network with an uplink. IPv6 addresses with a
    port stand in brackets: ``"[2001:db8::1]:443"``.

    A name is always that of a member, present or still to come: a name of the internet opens nothing.
    :class:`~isolate.network.Domains` lets out by such names.
    """

    to: tuple[str, ...] = ()

    def __init__(self, to: Iterable[str] = ()) -> None:
        object.__setattr__(self, "to", _listed(to, "Egress: to"))
        _ = self.rules  # each is checked

    @property
    def rules(self) -> tuple[Reach, ...]:
        """Each as a value."""
        return tuple(_reach(each, "Egress: to") for each in self.to)


@keywords
@dataclass(frozen=True)
class Ingress:
    """The sources from which an interface takes connections; all others are refused. Answers to its own pass.

    ``source`` are members by name and addresses or networks of the network, or ``"*"`` for all of it, with a port of
    this interface's own, a range of ports, or none for every port and protocol: ``"web:5432"``, ``"*:80"``,
    ``"10.88.0.16/28:8000-8010"``, ``"web:53/udp"``. Without any it takes none at all.
    IPv6 addresses with a port stand in brackets: ``"[fd00::7]:443"``.

    Ports that it publishes are reached from the host all the same: where from is said by the address there.
    """

    source: tuple[str, ...] = ()

    def __init__(self, source: Iterable[str] = ()) -> None:
        object.__setattr__(self, "source", _listed(source, "Ingress: source"))
        _ = self.rules  # each is checked

    @property
    def rules(self) -> tuple[Reach, ...]:
        """Each as a value; the ports are those of the interface."""
        return tuple(_reach(each, "Ingress: source", anyone=True) for each in self.source)


def _listed(value: Iterable[str], what: str) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{what} must be a list of str, not {value!r}: write [{value!r}]")
    return tuple(value)
