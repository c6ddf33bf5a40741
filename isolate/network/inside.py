"""Steps in a sandbox's own network that its ways out have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolate.engine.plan import Phase, Register, Step, call
from isolate.errors import ConflictError
from isolate.kernel.constants import Constant
from isolate.namespaces.part import NetNamespace
from isolate.network import sysctls

if TYPE_CHECKING:
    from isolate.engine.plan import Context, Op

__all__ = ["LISTENING", "all_ports", "check_own", "netlink_socket"]

#: Causes of what fails where a part has init listen.
LISTENING = {
    13: "init may not bind a port below 1024: the network namespace belongs to a user namespace that it is not root in",
    98: "another part of this sandbox listens there already",
}

_AF_NETLINK = Constant(16, "AF_NETLINK")
_SOCK_RAW = Constant(0x80003, "SOCK_RAW|SOCK_CLOEXEC")
_ROUTE = Constant(0, "NETLINK_ROUTE")
_NETFILTER = Constant(12, "NETLINK_NETFILTER")


def check_own(context: Context, part: str, instead: str = "") -> None:
    """Refuse a network that is another's. ``instead`` goes on the sentence: ``": attach it by …"``.

    :raises ConflictError: the network namespace is joined.
    """
    namespace = context.find(NetNamespace)
    if namespace is not None and namespace.joined:
        raise ConflictError(f"{part}: the network namespace is joined, so it is not this sandbox's own{instead}")


def netlink_socket(out: Register, *, filters: bool = False) -> Op:
    """A socket by which the network is seen and changed, also from outside by who is handed it (rtnetlink(7)).

    ``filters``: one for nftables.
    """
    return call("socket", _AF_NETLINK, _SOCK_RAW, _NETFILTER if filters else _ROUTE, out=out)


def all_ports() -> Step:
    """In a network of its own a program may serve at any port: those below 1024 say nothing about it there."""
    text = "ports below 1024 need no capability in this network"
    return sysctls.write(Phase.SYSTEM, text, {"ipv4/ip_unprivileged_port_start": b"0"})
