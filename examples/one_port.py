"""Let a program reach one host at one port, and nothing else.

    python examples/one_port.py

The program has a network of its own with loopback alone. One port of it leads to a server outside, which this program
connects to for it; no packet of the program's leaves its network. (For hosts by their names over HTTP and TLS there is
``network.Domains``.) Works as root and as an ordinary user.
"""

from __future__ import annotations

import socket
import sys
import threading

import isolate
from isolate import network

INSIDE = """
import socket, sys
def reach(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as s:
            return s.recv(100).decode()
    except OSError as error:
        return error.strerror
print(reach(5432))
print(reach(int(sys.argv[1])))
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    print(error.strerror)
"""


def serve(server: socket.socket, text: bytes) -> None:
    """Tell everybody who comes."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(text)


def main() -> int:
    """A server that may be reached, and one beside it."""
    with socket.create_server(("127.0.0.1", 0)) as database, socket.create_server(("127.0.0.1", 0)) as other:
        for server, text in ((database, b"the database"), (other, b"something else")):
            threading.Thread(target=serve, args=(server, text), daemon=True).start()
        port, beside = (server.getsockname()[1] for server in (database, other))
        asked: list[network.Asked] = []
        way = network.Connect(f"127.0.0.1:{port}", listen=5432, log=asked.append)
        result = isolate.presets.untrusted(extra=[way]).run(
            ["python3", "-c", INSIDE, str(beside)], text=True, timeout=30
        )
        said = (result.stdout or "").splitlines()
        for what, answer in zip(("its port", "another port", "another host"), said, strict=True):
            print(f"{what:13} {answer}")
        print(f"connections   {len(asked)}")
        for server in (database, other):
            server.shutdown(socket.SHUT_RDWR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
