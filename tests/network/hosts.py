"""Members of a network for tests: a sandbox that sleeps, and sockets that this program makes in its network."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

from isolate import PidNamespace, Sandbox, attach, network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolate import NetNamespace
    from isolate.sandbox.process import Process


class Host:
    """A member: its process, its network, its address."""

    def __init__(self, process: Process, lan: network.Network, name: str) -> None:
        self.process = process
        self.net: NetNamespace = attach(process).net
        self.address, self.address6 = (*map(str, lan.members[name]), "")[:2]

    def listen(self, port: int, address: str | None = None, *, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of its network that listens."""
        address = address or self.address
        with self.net:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(16)
        sock.settimeout(5)
        return sock

    def connects(self, address: str, port: int, timeout: float = 1.0) -> bool:
        """Whether a connection can be made from its network."""
        with self.net:
            return connects(address, port, timeout)

    def tell(self, *command: str) -> Any:
        """What a program of the host's tells in its network: ``ip -j …``."""
        return told(self.net, *command)


def connects(address: str, port: int, timeout: float = 1.0) -> bool:
    """Whether a connection can be made from this thread's network."""
    with contextlib.suppress(OSError):
        socket.create_connection((address, port), timeout).close()
        return True
    return False


def told(net: NetNamespace, *command: str) -> Any:
    """JSON that a program prints in a network."""
    with net:
        out = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return json.loads(out) if out.strip() else []


@contextlib.contextmanager
def host(lan: network.Network, name: str, **options: Any) -> Iterator[Host]:
    """A member that does nothing."""
    box = Sandbox(PidNamespace(), network.Interface(lan, name=name, **options))
    with box.spawn(["sleep", "60"]) as process:
        yield Host(process, lan, name)


def until(true: Callable[[], bool], seconds: float = 2.0) -> bool:
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
