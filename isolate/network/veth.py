"""A network namespace with a wire to another: veth pairs, addresses, by rtnetlink(7). For tests and small set-ups."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct

from isolate.errors import SetupError
from isolate.kernel.closing import Closing
from isolate.namespaces.part import NetNamespace

__all__ = ["Network"]

_REQUEST, _ACK, _CREATE, _EXCL = 1, 4, 0x400, 0x200
_ERROR = 2
_NEWLINK, _SETLINK, _NEWADDR = 16, 19, 20
_IFNAME, _LINKINFO, _NET_NS_FD = 3, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_UP = 1
_numbers = itertools.count(1)


class Network(Closing):
    """A network namespace, by its handle. A context manager that closes it; entering is ``with network.namespace:``."""

    def __init__(self, namespace: NetNamespace) -> None:
        #: The part that joins it: for sandboxes, and ``with`` blocks on this thread.
        self.namespace = namespace
        #: Its address on the wire, and that of the other end; None without one.
        self.address: str | None = None
        self.peer_address: str | None = None
        self._peers: list[Network] = []

    def peer(self, network: str = "10.83.0.0/30") -> Network:
        """A new network, connected to this one by a veth pair: the first address here, the second there.

        :param network: an IPv4 network with a prefix from 8 to 30.
        :raises SetupError: the kernel has no veth, or the caller no CAP_NET_ADMIN in both.
        """
        import ipaddress

        net = ipaddress.IPv4Network(network)
        if not 8 <= net.prefixlen <= 30:
            raise ValueError(f"peer must be a network with a prefix from 8 to 30, not {network!r}")
        other = Network(NetNamespace.create())
        number = next(_numbers)
        names = f"veth{number}a", f"veth{number}b"
        try:
            with self.namespace:
                _make_pair(*names, other.namespace.fd or -1)
                _address(names[0], str(net[1]), net.prefixlen)
            with other.namespace:
                _address(names[1], str(net[2]), net.prefixlen)
        except BaseException:
            other.close()
            raise
        self.address = other.peer_address = str(net[1])
        self.peer_address = other.address = str(net[2])
        self._peers.append(other)
        return other

    def close(self) -> None:
        """Let go of it and of what :meth:`peer` made."""
        for other in self._peers:
            other.close()
        self.namespace.close()


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _name(name: str) -> bytes:
    return _attribute(_IFNAME, name.encode() + b"\0")


def _link(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, change)  # struct ifinfomsg


def _make_pair(name: str, peer: str, fd: int) -> None:
    other = _link() + _name(peer) + _attribute(_NET_NS_FD, struct.pack("=I", fd))
    data = _attribute(_INFO_DATA, _attribute(_VETH_PEER, other))
    info = _attribute(_LINKINFO, _attribute(_INFO_KIND, b"veth") + data)
    _ask(_NEWLINK, _CREATE | _EXCL, _link() + _name(name) + info, f"make the veth pair {name}, {peer}")


def _address(name: str, address: str, prefix: int) -> None:
    index = socket.if_nametoindex(name)
    packed = socket.inet_aton(address)
    message = struct.pack("=BBBBi", socket.AF_INET, prefix, 0, 0, index)  # struct ifaddrmsg
    body = message + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    _ask(_NEWADDR, _CREATE | _EXCL, body, f"give {name} the address {address}")
    _ask(_SETLINK, 0, _link(index, _UP, _UP), f"set {name} up")


def _ask(kind: int, flags: int, body: bytes, step: str) -> None:
    """One request, and the kernel's answer to it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        header = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | flags, 1, 0)
        sock.sendto(header + body, (0, 0))
        error = _answer(sock, 1)
    if error:
        raise SetupError(
            error,
            step,
            part="Network",
            syscall="sendto",
            cause={
                errno.EOPNOTSUPP: "this kernel has no veth devices (CONFIG_VETH)",
                errno.EPERM: "it needs CAP_NET_ADMIN in the network namespace",
            }.get(error, os.strerror(error)),
        )


def _answer(sock: socket.socket, sequence: int) -> int:
    """The errno, or 0, in the kernel's acknowledgement of this request. Other processes can write to a socket too."""
    while True:
        message, (sender, _) = sock.recvfrom(65536)
        if sender or len(message) < 20:  # the kernel's port is 0
            continue
        _, kind, _, number, _, error = struct.unpack_from("=IHHIIi", message)
        if kind == _ERROR and number == sequence:
            return -int(error)
