"""Ports of loopback for programs that are told where to listen."""

from __future__ import annotations

import errno
import itertools
import os
import socket

__all__ = ["HERE", "bound", "free_port", "taken"]

HERE = "127.0.0.1"


def bound(port: int, *, reuse: bool = False) -> socket.socket:
    """A socket that has the port, and does not listen."""
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


# Below those that the kernel gives to whoever asks for any (from 32768 on). Another test run begins elsewhere.
_ports = itertools.cycle(range(20000, 32000))
for _ in range(os.getpid() * 40 % 12000):
    next(_ports)


def free_port() -> int:
    """One that nobody has, and not the one that the last caller was given."""
    return next(port for port in _ports if not taken(port))
