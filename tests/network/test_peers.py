"""Peers of the proxy and the relay that end a connection when they like: what they have sent arrives all the same."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.network.test_domains import GOOD, Served
from tests.network.test_relay import published
from tests.ports import HERE, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = str(Path(__file__).parents[2])
LARGE = 3_000_000


@contextlib.contextmanager
def serves(answer: Callable[[socket.socket], object]) -> Iterator[socket.socket]:
    """A server on this host's loopback that does this with each connection, on a thread for each."""
    server = socket.create_server((HERE, 0), backlog=64)

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(30)
            answer(connection)

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=server.accept()[:1], daemon=True).start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        server.close()


def _all(client: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(OSError):
        while more := client.recv(65536):
            found += more
    return found


@pytest.mark.parametrize("way", ["plain", "tunnel", "relay"])
def test_an_early_answer_arrives(way: str) -> None:
    """A server answers before it has read all of a request, and closes: too large, no right to. The client is told."""

    def refuse(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")

    with serves(refuse) as server:
        port, outer = server.getsockname()[1], free_port()
        with Served({}, upstream=port) as served, published(server, outer):
            for _ in range(20):
                with socket.create_connection((HERE, outer) if way == "relay" else served.address, 20) as client:
                    if way == "tunnel":
                        client.sendall(served.asked)
                        assert b" 200 " in client.recv(4096)
                    head = (
                        f"POST http://{GOOD}:{port}/ HTTP/1.1\r\nHost: {GOOD}:{port}\r\nContent-Length: {LARGE}\r\n\r\n"
                    )
                    with contextlib.suppress(ConnectionError):
                        client.sendall(head.encode() + bytes(LARGE))
                    assert _all(client).endswith(b"\r\n\r\nlarge")


def test_a_client_of_http_1_0_is_told_to_the_server() -> None:
    """It could not read an answer in chunks, which a server gives to who speaks 1.1."""
    asked: list[bytes] = []

    def tell(connection: socket.socket) -> None:
        asked.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")

    with serves(tell) as server:
        port = server.getsockname()[1]
        with Served({}, upstream=port) as served:
            for version in (0, 1):
                with socket.create_connection(served.address, 20) as client:
                    client.sendall(
                        f"GET http://{GOOD}:{port}/ HTTP/1.{version}\r\nHost: {GOOD}:{port}\r\n\r\n".encode()
                    )
                    assert b" 200 " in _all(client)
    assert [data.split(b"\r\n")[0] for data in asked] == [b"GET / HTTP/1.0", b"GET / HTTP/1.1"]


OWNER = """
import signal, sys
sys.path.insert(0, {root!r})
from tests.network.test_domains import Served
from tests.network.test_relay import published
what, control, (to, port) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])
class There:
    def settimeout(self, seconds): pass
    def getsockname(self): return "127.0.0.1", to
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
if control == "control":
    signal.pthread_sigmask = lambda *_: None  # by which the library's threads have it blocked
if what == "relay":
    with published(There(), port):
        print("ready", flush=True)
        sys.stdin.read()
else:
    with Served({{}}, upstream=to) as served:
        print(served.address[1], flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("control", ["", pytest.param("control", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["proxy", "relay"])
def test_a_client_that_leaves_does_not_end_a_program_with_sigpipe_at_its_default(what: str, control: str) -> None:
    """It has said that it sends no more, and goes while it is sent to: the second write then is a SIGPIPE."""

    def stream(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(100_000))

    with serves(stream) as server:
        to, port = server.getsockname()[1], free_port()
        command = [sys.executable, "-c", OWNER.format(root=ROOT), what, control, str(to), str(port)]
        with subprocess.Popen(command, stdin=-1, stdout=-1) as owner:
            assert owner.stdout is not None
            told = owner.stdout.readline()
            asked = b""
            if what == "proxy":
                port = int(told)
                asked = f"CONNECT {GOOD}:{to} HTTP/1.1\r\nHost: {GOOD}:{to}\r\n\r\n".encode()
            with contextlib.suppress(ConnectionError):
                for _ in range(200 if control else 20):
                    with socket.create_connection((HERE, port), 20) as client:
                        client.sendall(asked)
                        client.recv(1000)
                        client.shutdown(socket.SHUT_WR)
                        client.recv(1000)
                        if owner.poll() is not None:
                            break
        assert owner.returncode == (-signal.SIGPIPE if control else 0)
