"""The rules of reach: names, ports, and the addresses that no name may lead to."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, NamedTuple

from isolate.network.words import host_name

if TYPE_CHECKING:
    from isolate.network.address import Address, Net

__all__ = ["Rules", "name_rule", "why_private"]

_V4: Final = {
    "0.0.0.0/8": "this host",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared by carriers",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local, where clouds keep their metadata",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "of protocols",
    "192.0.2.0/24": "of documentation",
    "192.88.99.0/24": "a relay",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "of benchmarks, and the stub resolver's",
    "198.51.100.0/24": "of documentation",
    "203.0.113.0/24": "of documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
_V6: Final = {
    "::/128": "unspecified",
    "::1/128": "loopback",
    "100::/64": "discarded",
    "2001::/23": "of protocols",
    "2001:db8::/32": "of documentation",
    "3fff::/20": "of documentation",
    "5f00::/16": "of segment routing",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}
#: IPv6 addresses that stand for an IPv4 address, and how many bits stand behind it.
_CARRIERS: Final = (("::ffff:0:0/96", 0), ("::/96", 0), ("64:ff9b::/96", 0), ("64:ff9b:1::/48", 0), ("2002::/16", 80))

_TABLE: Final = [(ipaddress.ip_network(net), why) for net, why in (_V4 | _V6).items()]
_CARRYING: Final = [(ipaddress.IPv6Network(net), behind) for net, behind in _CARRIERS]


def why_private(address: Address, allowed: tuple[Net, ...] = ()) -> str:
    """Why no name may lead to this address; "" for a public one, and for one in the networks that are allowed.

    An IPv6 address that stands for an IPv4 address is judged as that one.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "link-local"
        for net, behind in _CARRYING:
            if address in net and int(address) > 1:
                return why_private(ipaddress.IPv4Address((int(address) >> behind) & 0xFFFFFFFF), allowed)
    if any(address.version == net.version and address in net for net in allowed):
        return ""
    return next((why for net, why in _TABLE if address.version == net.version and address in net), "")


def name_rule(value: object) -> str:
    """A rule such as ``example.org`` or ``*.example.org``, in lower case.

    :raises ValueError: an address, one label, a wildcard elsewhere than in front, or no host name.
    """
    if not isinstance(value, str):
        raise TypeError(f"Domains: a name must be a str, not {value!r}")
    wild = value.startswith("*.")
    bare = value[2:] if wild else value
    try:
        ipaddress.ip_address(bare.strip("[]"))
    except ValueError:
        pass
    else:
        raise ValueError(
            f"Domains: a name must be a host's name, not the address {value!r}; network.Connect reaches one address"
        )
    head, _, port = bare.rpartition(":")
    if head and port.isdigit():
        raise ValueError(f"Domains: the port of {value!r} is an argument of its own: Domains({head!r}, port={port})")
    if "*" in bare:
        raise ValueError(f"Domains: a wildcard stands in front of a name alone, as in '*.example.org', not {value!r}")
    name = host_name(bare, "Domains: a name", underscores=True)
    if "." not in name:
        raise ValueError(
            f"Domains: {value!r} would allow all of a top-level domain, or a name of this network: add the rest"
        )
    return "*." + name if wild else name


class Rules(NamedTuple):
    """Names and ports that may be reached, and how strictly."""

    names: tuple[str, ...]
    ports: tuple[int, ...]
    #: Networks that are not public and may be reached all the same.
    private: tuple[Net, ...] = ()
    #: A connection must begin with TLS for the very name.
    tls: bool = True
    #: Encrypted Client Hello is let through: then the name inside is not seen.
    ech: bool = False
    #: Methods of plain HTTP; () for all.
    methods: tuple[str, ...] = ()

    def knows(self, name: str) -> bool:
        """Whether the name is allowed: itself, or below a wildcard's."""
        if name in self.names:
            return True
        labels = name.split(".")
        return any("*." + ".".join(labels[n:]) in self.names for n in range(1, len(labels)))

    def why_not(self, name: str, port: int) -> str:
        """Why a name and a port may not be reached; "" if they may."""
        if not self.knows(name):
            return "the name is not allowed"
        return "" if port in self.ports else f"port {port} is not allowed"
