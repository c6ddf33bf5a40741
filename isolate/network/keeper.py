"""A network namespace with no process in it: made by the launcher, held by sockets, cut off when its owner ends.

The launcher makes the namespace (and without privileges a user namespace that owns it), and sockets in it, which it
hands over. Then it waits for its owner's end, however that comes, and takes down what could outlive it.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.diagnosis import start
from isolate.engine.finding import Finding
from isolate.engine.handing import Handing
from isolate.engine.keeper import until_owner_ends
from isolate.engine.ops import Buffer, Op, Register, call
from isolate.engine.plan import Phase, Step
from isolate.kernel.constants import (
    AT_FDCWD,
    CLONE_NEWNET,
    CLONE_NEWUSER,
    O_CLOEXEC,
    O_WRONLY,
    PR_SET_DUMPABLE,
    Constant,
)
from isolate.network import netlink, sysctls
from isolate.network.inside import netlink_socket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolate.engine.plan import Context, Launched
    from isolate.engine.session import Session
    from isolate.network.netlink import Message

__all__ = ["SIOCGSKNS", "Bound", "Kept", "capable", "keep"]

_CLOEXEC = Constant(0x80000, "SOCK_CLOEXEC")
_NETLINK = Constant(16, "AF_NETLINK")
_RAW = Constant(3, "SOCK_RAW") | _CLOEXEC
_IP_FREEBIND, _IPV6_FREEBIND, _IPV6_V6ONLY = 15, 78, 26

SIOCGSKNS = Constant(0x894C, "SIOCGSKNS")  # of a socket: a descriptor of its network namespace (Linux 4.10)

HINTS: dict[int, str | Finding] = {
    errno.EPERM: "making a network needs CAP_SYS_ADMIN, or a user namespace, which this host forbids"
    " (user.max_user_namespaces, an LSM, or a filter of system calls)",
    errno.ENOSPC: "the limit of network or user namespaces is reached (user.max_net_namespaces, max_user_namespaces)",
    errno.EINVAL: Finding("the kernel was built without network namespaces", "use another kernel", True),
    errno.EPROTONOSUPPORT: Finding(
        "the kernel was built without nf_tables, or its module cannot be loaded", "as root: modprobe nf_tables", True
    ),
}


@dataclass(frozen=True)
class Bound:
    """A socket that is to be bound in the namespace, before its address is there (IP_FREEBIND)."""

    kind: str  # "tcp" or "udp"
    address: str
    port: int

    def ops(self, fd: Register) -> list[Op]:
        """Make it, bind it, listen."""
        import ipaddress

        address = ipaddress.ip_address(self.address)
        one = Buffer(struct.pack("=i", 1), "on")
        port = self.port.to_bytes(2, "big")
        if address.version == 4:
            family, level, free = 2, 0, _IP_FREEBIND
            name = struct.pack("=H2s4s8x", 2, port, address.packed)
        else:
            family, level, free = 10, 41, _IPV6_FREEBIND
            name = struct.pack("=H2sI16sI", 10, port, 0, address.packed, 0)
        stream = self.kind == "tcp"
        flags = _CLOEXEC | Constant(0x800, "SOCK_NONBLOCK") | Constant(1 if stream else 2, f"SOCK_{self.kind}")
        ops: list[Op] = [call("socket", family, flags, 0, out=fd), call("setsockopt", fd, level, free, one, 4)]
        if family == 10:
            ops.append(call("setsockopt", fd, level, _IPV6_V6ONLY, one, 4))
        ops.append(call("bind", fd, Buffer(name, "address"), len(name)))
        return [*ops, call("listen", fd, 128)] if stream else ops


@dataclass(frozen=True)
class _Namespace:
    """The only part of the keeper's plan."""

    handing: Handing
    bound: tuple[Bound, ...]
    here: tuple[Message, ...]
    outside: tuple[Message, ...]
    settings: tuple[tuple[str, bytes], ...] = ()

    def steps(self, context: Context) -> Iterator[Step]:
        """Make it, hand the sockets over, wait for the end, take down."""
        slot = self.handing.slot(context)
        host = Register("netlink socket of the caller's network")
        if self.outside:
            yield Step(Phase.CGROUP, "a netlink socket here", (netlink_socket(host),))
        if not capable():
            yield from _user_namespace(context)
        making = call("unshare", CLONE_NEWNET)
        yield Step(Phase.CGROUP, "make a network namespace", (making,), hints=HINTS)
        if self.settings:
            yield sysctls.write(Phase.CGROUP, "what is bridged, and forward IPv6, in it", dict(self.settings))
        route, filters, own = Register("rtnetlink"), Register("nfnetlink"), Register("rtnetlink")
        yield Step(
            Phase.CGROUP,
            "sockets in it, to ask the kernel by",
            (
                netlink_socket(route),
                call("socket", _NETLINK, _RAW, netlink.NETFILTER, out=filters),
                netlink_socket(own),
            ),
            hints=HINTS,
        )
        fds = [route, filters]
        for each in self.bound:
            fd = Register("socket")
            fds.append(fd)
            text = f"a {each.kind} socket at {each.address} port {each.port}"
            yield Step(Phase.CGROUP, text, tuple(each.ops(fd)))
        yield Step(Phase.CGROUP, "hand the sockets over", tuple(self.handing.hand(slot, fds)))
        yield until_owner_ends()
        for sock, messages in ((own, self.here), (host, self.outside)):
            for message in messages:
                yield _send(sock, message)


def _user_namespace(context: Context) -> Iterator[Step]:
    """For whoever has no privileges: a user namespace that the network belongs to, with the caller's ids as root."""
    fd = Register("file")
    ops: list[Op] = [call("unshare", CLONE_NEWUSER), call("prctl", PR_SET_DUMPABLE, 1)]
    for name, data in (
        (b"setgroups", b"deny"),
        (b"uid_map", b"0 %d 1" % context.euid),
        (b"gid_map", b"0 %d 1" % context.egid),
    ):
        ops += [
            call("openat", AT_FDCWD, b"/proc/self/" + name, O_WRONLY | O_CLOEXEC, 0, out=fd),
            call("write", fd, data, len(data), expect=len(data)),
            call("close", fd),
        ]
    ops.append(call("prctl", PR_SET_DUMPABLE, 0))
    yield Step(Phase.CGROUP, "make a user namespace that owns the network", tuple(ops), hints=HINTS)


def _send(sock: Register, message: Message) -> Step:
    """A request of the clean-up: what it is about may have gone before."""
    size = 16 + len(message.body)
    data = struct.pack("=IHHII", size, message.kind, message.flags | netlink.REQUEST, 1, 0) + message.body
    kernel = struct.pack("=HHII", 16, 0, 0, 0)  # struct sockaddr_nl
    words = str(message.step)
    ops = (call("sendto", sock, Buffer(data, words), len(data), 0, Buffer(kernel, "the kernel"), len(kernel)),)
    return Step(Phase.CLEANUP, words, ops, needs=sock)


def capable() -> bool:
    """Whether this process may make a network namespace by itself (CAP_SYS_ADMIN and CAP_NET_ADMIN are effective)."""
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                wanted = 1 << 21 | 1 << 12
                return int(line.split()[1], 16) & wanted == wanted
    return False


class Kept:
    """The namespace: its sockets, in the order that they were asked for, and its keeper."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.session: Session | None = None

    def close(self) -> None:
        """Let go. What is in the namespace goes with the last descriptor."""
        while self.fds:
            os.close(self.fds.pop())
        session, self.session = self.session, None
        if session is not None:
            session.dismiss()


def keep(
    bound: Sequence[Bound],
    here: Sequence[Message],
    outside: Sequence[Message] = (),
    settings: Sequence[tuple[str, bytes]] = (),
) -> Kept:
    """Make a network namespace. Its first two sockets are for rtnetlink and nftables, then those that are ``bound``.

    ``here`` are requests to its kernel once the owner has ended, ``outside`` to the caller's network. ``settings`` are
    written in it, below ``/proc/sys/net``, where that can be.

    :raises SetupError: it cannot be made.
    """
    kept = Kept()

    def receive(fds: list[int], session: Launched) -> None:
        kept.fds += fds

    handing = Handing(receive, 2 + len(bound), part="Network")
    part = _Namespace(handing, tuple(bound), tuple(here), tuple(outside), tuple(settings))
    try:
        kept.session = start.keep(part)
        if not kept.fds:
            raise start.why(kept.session, "Network")
    except BaseException:
        kept.close()
        raise
    return kept
