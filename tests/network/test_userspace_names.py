"""Names behind ``Userspace``: asked for at 10.0.2.3; the host's resolvers answer, by IPv4 or IPv6."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from isolate import Bind, MountNamespace, PidNamespace, Sandbox, network
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.network.hosts import Outside


pytestmark = pytest.mark.root
#: Prints the address of a name, asked for by UDP, and by TCP.
ASK = """
import socket, struct
print(socket.gethostbyname("www.example.org"))
with socket.create_connection(("10.0.2.3", 53), 20) as sock:
    question = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\\3www\\7example\\3org\\0\\0\\1\\0\\1"
    sock.sendall(struct.pack(">H", len(question)) + question)
    answer = sock.makefile("rb")
    print(socket.inet_ntoa(answer.read(struct.unpack(">H", answer.read(2))[0])[-4:]))
"""


@contextlib.contextmanager
def resolvers(tmp_path: Path, *servers: str) -> Iterator[None]:
    """The host's ``/etc/resolv.conf`` names these, for the thread."""
    file = tmp_path / "resolv.conf"
    file.write_text("".join(f"nameserver {server}\n" for server in servers))
    with MountNamespace(), Bind(str(file), "/etc/resolv.conf"):
        yield


@contextlib.contextmanager
def answers(sock: socket.socket) -> Iterator[list[str]]:
    """A resolver that knows 203.0.113.7 for each name; who has asked it."""
    asked: list[str] = []
    sock.settimeout(None)

    def body() -> None:
        while True:
            message, peer = sock.recvfrom(999)
            if peer is None:
                return  # it was shut down
            asked.append(peer[0])
            question = message[12 : message.index(b"\0", 12) + 5]
            record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([203, 0, 113, 7])
            sock.sendto(message[:2] + b"\x81\x80" + struct.pack(">4H", 1, 1, 0, 0) + question + record, peer)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    yield asked
    with contextlib.suppress(OSError):  # ENOTCONN of datagrams, whose thread is woken all the same
        sock.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_host_that_has_only_an_ipv6_resolver(helper: str, outside: Outside, tmp_path: Path) -> None:
    box = Sandbox(PidNamespace(), MountNamespace(), network.Userspace(helper=helper))
    with resolvers(tmp_path, outside.address6):
        with outside.listen(53, outside.address6, kind=socket.SOCK_DGRAM) as sock, answers(sock) as asked:
            done = box.run(["python3", "-c", ASK], text=True)
            assert done.stdout == "203.0.113.7\n" * 2, done.stderr
            assert asked == ["2001:db8:9::1"] * 2
        refused = box.run(["python3", "-c", ASK], text=True)  # control: it was that resolver which answered
        assert "Temporary failure" in str(refused.stderr)


def test_the_next_resolver_is_asked(outside: Outside, tmp_path: Path) -> None:
    """The first one is not there: a helper's own would ask it alone."""
    box = Sandbox(PidNamespace(), MountNamespace(), network.Userspace())
    with resolvers(tmp_path, "127.0.0.9", outside.address6):
        with outside.listen(53, outside.address6, kind=socket.SOCK_DGRAM) as sock, answers(sock):
            done = box.run(["python3", "-c", ASK], text=True)
            assert done.stdout == "203.0.113.7\n" * 2, done.stderr


def test_a_resolver_at_the_hosts_loopback(helper: str, outside: Outside, tmp_path: Path) -> None:
    """Nothing else of the loopback is reached, but names are answered."""
    box = Sandbox(PidNamespace(), MountNamespace(), network.Userspace(helper=helper))
    with resolvers(tmp_path, "127.0.0.53"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.53", 53))
        with answers(sock):
            done = box.run(["python3", "-c", ASK], text=True)
            assert done.stdout == "203.0.113.7\n" * 2, done.stderr


ORDINARY = f"""
from isolate import *
from isolate import network
parts = PidNamespace(), UserNamespace(), MountNamespace()
result = Sandbox(*parts, network.Userspace(helper={{helper!r}})).run(["python3", "-c", {ASK!r}], text=True)
assert result.stdout == "203.0.113.7\\n" * 2, (result.stdout, result.stderr)
"""


def test_an_ordinary_user(helper: str, outside: Outside, tmp_path: Path) -> None:
    device = tmp_path / "tun"  # here nobody but root may open it, which is not how it usually is
    os.mknod(device, 0o020666, os.makedev(10, 200))
    os.chmod(device, 0o666)
    with resolvers(tmp_path, outside.address6), Bind(str(device), "/dev/net/tun", read_only=False, dev=True):
        with outside.listen(53, outside.address6, kind=socket.SOCK_DGRAM) as sock, answers(sock):
            as_ordinary_user(ORDINARY.format(helper=helper))
