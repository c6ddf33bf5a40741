"""A stub resolver for clients that resolve before they connect: each allowed name has an address of this network's own.

Nothing is asked outside, so a question carries nothing out. The addresses are of 198.18.0.0/15, which is routed to
loopback inside: a connection to one of them comes to the proxy, which knows the name by it.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from isolate.network.dns import answer, parse

if TYPE_CHECKING:
    from isolate.network.proxy.events import Log
    from isolate.network.proxy.rules import Rules

__all__ = ["NET", "Stub"]

NET: Final = ipaddress.IPv4Network("198.18.0.0/15")
_MOST: Final = 4096  # a program could ask for any number of names below a wildcard
_ADDRESS, _EVERY, _REFUSED = 1, 255, 5


class Stub:
    """Names and their addresses, given out as they are asked for."""

    def __init__(self, rules: Rules, log: Log) -> None:
        self._rules, self._log = rules, log
        self._by_name: dict[str, ipaddress.IPv4Address] = {}
        self._by_address: dict[str, str] = {}

    def name_of(self, address: str) -> str | None:
        """The name that an address was given out for."""
        return self._by_address.get(address)

    def address_of(self, name: str) -> ipaddress.IPv4Address | None:
        """The address of a name; None for one that is not allowed, or when there are too many."""
        found = self._by_name.get(name)
        if found is None and self._rules.knows(name) and len(self._by_name) < _MOST:
            found = NET.network_address + 256 + len(self._by_name)
            self._by_name[name] = found
            self._by_address[str(found)] = name
        return found

    def reply(self, message: bytes) -> bytes | None:
        """The answer to a question; None for what is none."""
        query = parse(message)
        if query is None:
            return None
        found = self.address_of(query.name)
        if found is None:
            if query.name not in ("localhost", ""):
                self._log.add("dns", query.name, 0, "the name is not allowed")
            return answer(query, None, _REFUSED if self._rules.knows(query.name) else 0)
        return answer(query, [found] if query.kind in (_ADDRESS, _EVERY) else [])
