"""The relay of published ports: ports that come back, many connections, few descriptors."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate.errors import SetupError
from isolate.network import Network
from isolate.network import relay as module
from isolate.network.datagrams import IDLE
from isolate.network.hostlink import reserve
from isolate.network.netlink import Socket
from isolate.network.relay import Relay, Relayed
from isolate.network.words import Publish
from tests.network.hosts import give
from tests.ports import HERE, bound, free_port, taken

if TYPE_CHECKING:
    from collections.abc import Iterator


class Here:
    """Sockets of this network, in the place of a switch's."""

    def take(self, kind: int, family: int = socket.AF_INET) -> socket.socket:
        sock = socket.socket(family, kind)
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        """Nothing is kept."""


@contextlib.contextmanager
def published(server: socket.socket, *ports: int, idle: float | None = None) -> Iterator[Relay]:
    """A relay from ports of the host to where the server listens."""
    relay = Relay(Here(), idle=idle)  # type: ignore[arg-type]
    try:
        server.settimeout(20)
        inside = server.getsockname()[1]
        way = Relayed(relay, tuple(Publish(port, inside) for port in ports), reserve)
        way.lead([ip_address(HERE)])
        try:
            yield relay
        finally:
            way.close()
    finally:
        relay.close()


def passes(one: socket.socket, other: socket.socket) -> bool:
    """Whether bytes go from one to the other, and back."""
    one.settimeout(20)
    other.settimeout(20)
    one.sendall(b"to")
    there = other.recv(2)
    other.sendall(b"fro")
    return (there, one.recv(3)) == (b"to", b"fro")


def client(port: int) -> socket.socket:
    return socket.create_connection((HERE, port), 20)


def test_a_port_can_be_published_again_at_once() -> None:
    with socket.create_server((HERE, 0)) as server:
        port = free_port()
        for _ in range(3):
            with published(server, port), client(port) as mine:
                theirs, _ = server.accept()
                theirs.close()
                assert mine.recv(1) == b""  # the relay closed first
            assert taken(port)  # control: what has ended is remembered still


def test_a_port_that_somebody_has_is_refused() -> None:
    with socket.create_server((HERE, 0)) as server:
        port = free_port()
        with published(server, port), client(port) as mine:
            server.accept()[0].close()
            assert mine.recv(1) == b""
        assert taken(port)
        assert not taken(port, reuse=True)
        publish = Publish(port, 1)
        with bound(port, reuse=True) as other:
            other.listen()
            with pytest.raises(SetupError, match="in use"):
                reserve(publish, port)
        with reserve(publish, port) as held:  # control: nobody listens any more
            assert taken(port)
            assert taken(port, reuse=True)
            with pytest.raises(SetupError, match="in use"):
                reserve(publish, port)
            with pytest.raises(ConnectionRefusedError):
                client(port)
            assert held.getsockname() == (HERE, port)


def test_what_has_been_idle_longest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    monkeypatch.setattr(module, "_SPARED", 0.0)
    first, second = free_port(), free_port()
    with socket.create_server((HERE, 0)) as server, published(server, first, second), contextlib.ExitStack() as stack:

        def pair(port: int) -> tuple[socket.socket, socket.socket]:
            mine = stack.enter_context(client(port))
            theirs = stack.enter_context(server.accept()[0])
            theirs.settimeout(20)
            return mine, theirs

        other = pair(second)
        full = [pair(first) for _ in range(3)]
        assert all(passes(*each) for each in (full[0], full[2]))  # none has gone yet
        new = pair(first)
        assert full[1][0].recv(1) == b""  # it was idle longest
        assert all(passes(*each) for each in (full[0], full[2], new, other))  # the control: nothing else has ended


def test_a_full_port_waits_and_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 1)
    monkeypatch.setattr(module, "_SPARED", 600.0)
    first, second = free_port(), free_port()
    with socket.create_server((HERE, 0)) as server, published(server, first, second), client(first) as mine:
        theirs, _ = server.accept()
        with client(first) as waiting:
            with client(second) as other, server.accept()[0] as its:
                assert passes(other, its)  # the one that came before it still waits: it would have been first
            assert passes(mine, theirs)
            mine.close()
            assert theirs.recv(1) == b""
            theirs.close()
            with server.accept()[0] as next_one:
                assert passes(waiting, next_one)


def test_what_is_idle_ends() -> None:
    ports = free_port(), free_port()
    with socket.create_server((HERE, 0)) as server, published(server, ports[0], idle=0.1):
        with published(server, ports[1], idle=600), client(ports[1]) as kept, server.accept()[0] as its:
            with client(ports[0]) as mine, server.accept()[0] as theirs:
                mine.settimeout(20)
                theirs.settimeout(20)
                assert (mine.recv(1), theirs.recv(1)) == (b"", b"")
            assert passes(kept, its)  # the control: it was idle longer
    with pytest.raises(ValueError, match="idle"):
        Network(idle=0)


SHORT = """
import os, resource, socket, sys, time
sys.path.insert(0, sys.argv[1])
from isolate.network.relay import Relay
from tests.network.test_relay import Here, client, free_port, passes, published

calls = []

def accept(self, port, to, before=Relay._accept):
    calls.append(port)
    before(self, port, to)

Relay._accept = accept
port = free_port()
with socket.create_server(("127.0.0.1", 0)) as server, published(server, port):
    with client(port) as first, server.accept()[0] as its:
        assert passes(first, its)  # the control
        waiting = socket.socket()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        while True:
            try:
                spare.append(os.dup(0))
            except OSError:
                break
        calls.clear()
        waiting.connect(("127.0.0.1", port))
        time.sleep(0.5)
        assert passes(first, its)  # those that are there go on
        print(0 < len(calls) < 10, file=sys.stderr)
        for fd in spare:
            os.close(fd)
        with server.accept()[0] as theirs:
            print(passes(waiting, theirs), file=sys.stderr)
        waiting.close()
"""


def test_without_descriptors_it_waits() -> None:
    """To accept fails with EMFILE, and the client stays in the queue: it is tried again a second later, not at once."""
    command = [sys.executable, "-c", SHORT, str(Path(__file__).parents[2])]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.split() == ["True", "True"], done.stderr


def datagrams(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    sock.settimeout(20)
    return sock


@pytest.mark.root
@pytest.mark.parametrize(("every", "asked"), [("0.0.0.0", "127.0.0.2"), ("::", "2001:db8::2")])
def test_answers_come_from_the_address_that_was_asked(
    machine: object, monkeypatch: pytest.MonkeyPatch, every: str, asked: str
) -> None:
    """A port of all addresses, and a client that takes nothing from another one."""
    with Socket() as sock:
        give(sock, 1, "2001:db8::1/64", "2001:db8::2/64")
    relay = Relay(Here())  # type: ignore[arg-type]
    with contextlib.closing(relay), datagrams(HERE) as server:
        for right in (True, False):
            if not right:  # control: the kernel chooses
                monkeypatch.setattr(module.Datagrams, "attend", staticmethod(lambda port: None))
            port, client = datagrams(every), datagrams("2001:db8::1" if ":" in every else "127.0.0.3")
            relay.listen(port, (server.getsockname(),))
            with client:
                client.connect((asked, port.getsockname()[1]))
                client.send(b"question")
                data, inner = server.recvfrom(9)
                assert data == b"question"
                server.sendto(b"answer", inner)
                if right:
                    assert client.recv(9) == b"answer"
                else:
                    client.settimeout(0.3)
                    with pytest.raises(TimeoutError):
                        client.recv(9)
            relay.forget(port)


def test_a_client_that_is_only_sent_to_is_not_forgotten() -> None:
    ready: dict[socket.socket, Any] = {}
    held = module.Datagrams(Here(), lambda s, _, f: ready.update({s: f}), lambda s: s.close())  # type: ignore[arg-type]
    with datagrams(HERE) as server, datagrams(HERE) as port, datagrams(HERE) as client:
        held.attend(port)
        client.sendto(b"subscribe", port.getsockname())
        select.select([port], [], [], 20)
        port.setblocking(False)
        held.take(port, (server.getsockname(),))
        ((inner, answers),) = ready.items()
        (one,) = held._clients.values()
        _, place = server.recvfrom(9)
        one.used -= 2 * IDLE
        server.sendto(b"news", place)
        select.select([inner], [], [], 20)
        answers(inner)
        held.expire()
        assert client.recv(9) == b"news"
        assert held
        one.used -= 2 * IDLE  # control: where nothing moves it goes
        held.expire()
        assert not held
