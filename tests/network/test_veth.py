"""Which message on a netlink socket is taken for the kernel's answer."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from isolate.network import veth


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_only_the_kernels_answer_counts() -> None:
    def socket_of_rtnetlink() -> socket.socket:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)

    with socket_of_rtnetlink() as sock, socket_of_rtnetlink() as stranger:
        sock.bind((0, 0))
        sock.settimeout(30)
        forged = struct.pack("=IHHIIi", 20, 2, 0, 7, 0, -errno.EPERM)
        stranger.sendto(forged, (sock.getsockname()[0], 0))
        # An answer to another request, and that to ours: RTM_SETLINK of no link.
        sock.sendto(struct.pack("=IHHII", 16, 19, 1 | 4, 6, 0), (0, 0))
        sock.sendto(struct.pack("=IHHII", 32, 19, 1 | 4, 7, 0) + bytes(16), (0, 0))
        first = sock.recv(65536, socket.MSG_PEEK)
        assert first == forged  # what was taken before
        assert veth._answer(sock, 7) == errno.EINVAL
