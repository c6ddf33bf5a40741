"""The relay of published ports: ports that come back, many connections, few descriptors."""

from __future__ import annotations

import contextlib
import errno
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from isolate.errors import SetupError
from isolate.network.hostlink import reserve
from isolate.network.relay import Relay, Relayed
from isolate.network.words import Publish

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = "127.0.0.1"


class Here:
    """Sockets of this network, in the place of a switch's."""

    def take(self, kind: int, family: int = socket.AF_INET) -> socket.socket:
        sock = socket.socket(family, kind)
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        """Nothing is kept."""


def bound(port: int, *, reuse: bool = False) -> socket.socket:
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        sock.bind((HERE, port))
    except BaseException:
        sock.close()
        raise
    return sock


def taken(port: int, *, reuse: bool = False) -> bool:
    """Whether nobody else can bind there."""
    try:
        bound(port, reuse=reuse).close()
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def free_port() -> int:
    with bound(0) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def published(server: socket.socket, port: int) -> Iterator[Relay]:
    """A relay from a port of the host to where the server listens."""
    relay = Relay(Here())  # type: ignore[arg-type]
    try:
        inside = server.getsockname()[1]
        ports = Relayed(relay, (Publish(port, inside),), reserve)
        ports.lead([ip_address(HERE)])
        try:
            yield relay
        finally:
            ports.close()
    finally:
        relay.close()


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
