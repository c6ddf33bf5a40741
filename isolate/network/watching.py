"""Observing a network: counters, captures, and packets that come late or not at all."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from isolate.kernel import checks
from isolate.kernel.checks import is_int
from isolate.network.capture import Capture
from isolate.network.impair import Impaired
from isolate.network.sockets import make
from isolate.network.traffic import Impairment

if TYPE_CHECKING:
    import os

    from isolate.network.link import Counters
    from isolate.network.switch import Plug, Switch

__all__ = ["Watching"]


class Watching:
    """The methods of a :class:`Network` that need nothing of it but its switch and a member's plug."""

    _switch: Switch
    _impaired: dict[int, Impaired]

    def _plug(self, name: str) -> Plug:
        raise NotImplementedError

    def stats(self, name: str) -> Counters:
        """The traffic of a member so far, received and sent, as the member sees it."""
        return self._switch.counters(self._plug(name))

    def impair(
        self,
        name: str,
        *,
        delay: float = 0.0,
        jitter: float = 0.0,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        corrupt: float = 0.0,
    ) -> Impaired:
        """Have a member's packets come late, twice, or not at all, each way, until the returned object is ended.

        ``delay`` and ``jitter`` are in seconds, the others shares from 0 to 1. Loss alone needs nftables, all else the
        kernel's netem. Another impairment of the same member takes the place of one before.

        :raises UnsupportedError: the kernel has no netem.
        """
        wanted = Impairment(delay, jitter, loss, duplicate, reorder, corrupt)
        plug = self._plug(name)
        with self._switch.lock:
            before = self._impaired.pop(plug.number, None)
            if before is not None:
                before.end()
            impaired = self._impaired[plug.number] = Impaired(self._switch, plug, wanted)
        return impaired

    def capture(
        self, name: str, path: str | os.PathLike[str], *, limit: int | str = "64M", snap: int = 65535
    ) -> Capture:
        """Write what a member sends and receives to a file (pcapng), until the returned object is stopped.

        ``limit`` ends it when the file has that many bytes; of each packet ``snap`` bytes are kept.

        :raises OSError: the file cannot be written.
        """
        largest = checks.size("capture: limit", limit, 4096)
        if not is_int(snap) or not 64 <= snap <= 1 << 18:
            raise ValueError(f"capture: snap must be from 64 to 262144 bytes, not {snap!r}")
        plug = self._plug(name)
        (sock,) = make(self._switch.namespace, socket.AF_PACKET, socket.SOCK_RAW)
        try:
            sock.bind((plug.port, 3))  # ETH_P_ALL
        except BaseException:
            sock.close()
            raise
        return Capture(sock, path, name, limit=largest, snap=snap)
