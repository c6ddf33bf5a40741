"""Members of a network for tests: a sandbox that sleeps, and sockets that this program makes in its network."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

from isolate import NetNamespace, PidNamespace, Sandbox, attach, network
from isolate.network import address, link
from isolate.network.netlink import Socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from isolate.sandbox.process import Process


class _Netted:
    """Somebody with a network and an address."""

    net: NetNamespace
    address: str

    def listen(self, port: int, at: str | None = None, *, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of its network that listens."""
        at = at or self.address
        with self.net:
            sock = socket.socket(socket.AF_INET6 if ":" in at else socket.AF_INET, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((at, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(16)
        sock.settimeout(30)
        return sock

    def connects(self, address: str, port: int, timeout: float = 10) -> bool:
        """Whether a connection can be made from its network."""
        with self.net:
            return connects(address, port, timeout)

    def tell(self, *command: str) -> Any:
        """What a program of the host's tells in its network: ``ip -j …``."""
        return told(self.net, *command)


class Host(_Netted):
    """A member: its process, its network, its address."""

    def __init__(self, process: Process, lan: network.Network, name: str) -> None:
        self.process = process
        self.net: NetNamespace = attach(process).net
        self.address, self.address6 = (*map(str, lan.members[name]), "")[:2]


def connects(address: str, port: int, timeout: float = 10) -> bool:
    """Whether a connection can be made from this thread's network.

    A SYN or a question for a neighbour that is lost is sent again after a second, and again: where the kernel takes its
    time with a member that has just come, that happens.
    """
    with contextlib.suppress(OSError):
        socket.create_connection((address, port), timeout).close()
        return True
    return False


#: This thread's own network.
HERE = contextlib.nullcontext()


def told(net: contextlib.AbstractContextManager[Any], *command: str) -> Any:
    """JSON that a program prints in a network.

    Not of tables with an owner: nft 1.0.6 reads freed memory for their flags, and what it prints may end there.
    """
    with net:
        out = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return json.loads(out) if out.strip() else []


def ruleset(net: contextlib.AbstractContextManager[Any]) -> str:
    """All tables of a network, as text."""
    with net:
        return subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True, text=True).stdout


@contextlib.contextmanager
def host(lan: network.Network, name: str, **options: Any) -> Iterator[Host]:
    """A member that does nothing."""
    box = Sandbox(PidNamespace(), network.Interface(lan, name=name, **options))
    with box.spawn(["sleep", "60"]) as process:
        yield Host(process, lan, name)


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait for something that the kernel does a little later."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def descriptors() -> set[str]:
    """What this process has open."""
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _open(fd)}


def _open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


class Outside(_Netted):
    """Another machine: a network that the machine's is wired to, at 192.0.2.9; the machine is 192.0.2.1."""

    address = "192.0.2.9"
    address6 = "2001:db8:9::9"

    def __init__(self, machine: NetNamespace) -> None:
        self.net = NetNamespace.create()
        fd = self.net.fd
        assert fd is not None
        with self.net, Socket() as there:
            with machine, Socket() as here:
                here.batch([link.veth("eth9", "eth0", fd)])
                index = _index("eth9", here)
                # New devices do as the first network's do, where that has a sysctl for it.
                here.batch([link.forwarding(index, on=False)])
                give(here, index, "192.0.2.1/24", "2001:db8:9::1/64")
                # Who forwards asks for neighbours by a link-local address; the kernel's own is not used for seconds.
                give(here, index, "fe80::1/64")
                here.batch([address.route(None, index=index, via=ipaddress.ip_address(self.address))])
                here.batch([address.route(None, index=index, via=ipaddress.ip_address(self.address6))])
            index = _index("eth0", there)
            there.batch([link.change(index, up=True)])
            give(there, index, "192.0.2.9/24", "2001:db8:9::9/64")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.net.close()


def give(sock: Socket, index: int, *places: str) -> None:
    """Give a device addresses that are in use at once: for IPv6 the kernel's own route comes by a worker, and what
    arrives before it is lost."""
    for place in map(ipaddress.ip_interface, places):
        sock.batch([address.add(index, place)])
        if place.version == 6:
            sock.batch([address.local(ipaddress.ip_network(place.ip), index=index)])


def _index(name: str, sock: Socket) -> int:
    return link.named(sock, name).index
