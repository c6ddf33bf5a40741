"""Tests with networks of their own: port 80 is free in each, and no packet of theirs is seen anywhere else.

    python -m pytest examples/test_two_networks.py

The fixtures come with the package. Works as root and as an ordinary user.
"""

from __future__ import annotations

import socket
from typing import Any

ASK = "import socket, sys\nwith socket.create_connection((sys.argv[1], 80), 5) as s: print(s.recv(99).decode())"


def test_two_hosts_find_one_another(lan: Any) -> None:
    """A server in one network, a program in another one, which finds it by its name."""
    server, client = lan.hosts("server", "client")
    with server.net:
        listening = socket.create_server((server.address, 80))
    with listening, client.spawn(["python3", "-c", ASK, "server"], stdout=-1, text=True) as process:
        connection, address = listening.accept()
        with connection:
            connection.sendall(b"hello")
        assert process.communicate(timeout=10)[0] == "hello\n"
    assert address[0] == client.address


def test_two_networks_do_not_meet(netns: Any, lan: Any) -> None:
    """Loopback of one is not loopback of the other."""
    with socket.create_server(("127.0.0.1", 80)):
        socket.create_connection(("127.0.0.1", 80)).close()
        other = lan.host("other")
        result = other.run(["python3", "-c", ASK, "127.0.0.1"])
        assert b"refused" in result.stderr
