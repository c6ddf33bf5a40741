"""The packets at a member's port, written to a file as pcapng, which Wireshark and tcpdump read."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Capture", "Writer"]

_TIMESTAMPNS, _SCM_TIMESTAMPNS = 35, 35
_SOL_PACKET, _STATISTICS, _AUXILIARY = 263, 6, 8
_OUTGOING = 4
_BUFFER = 8 << 20


class Writer:
    """Blocks of a pcapng file (draft-ietf-opsawg-pcapng): one section, one interface of Ethernet, times in ns."""

    def __init__(self, file: BinaryIO, name: str, snap: int) -> None:
        self._file = file
        self.size: int = 0
        application = _option(4, b"isolate")
        self._block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + application + _option(0, b""))
        options = _option(2, name.encode()) + _option(9, b"\x09") + _option(0, b"")
        self._block(1, struct.pack("<HHI", 1, 0, snap) + options)

    def packet(self, when: int, data: bytes, size: int, *, outgoing: bool) -> None:
        """A packet of ``size`` bytes, of which ``data`` was kept, at ``when`` nanoseconds since 1970."""
        head = struct.pack("<IIIII", 0, when >> 32, when & 0xFFFFFFFF, len(data), size)
        flags = _option(2, struct.pack("<I", 2 if outgoing else 1)) + _option(0, b"")
        self._block(6, head + _padded(data) + flags)

    def statistics(self, when: int, seen: int, dropped: int) -> None:
        """How many packets there were, and how many of them were missed."""
        options = _option(4, struct.pack("<Q", seen)) + _option(5, struct.pack("<Q", dropped)) + _option(0, b"")
        self._block(5, struct.pack("<III", 0, when >> 32, when & 0xFFFFFFFF) + options)

    def _block(self, kind: int, body: bytes) -> None:
        size = 12 + len(body)
        self._file.write(struct.pack("<II", kind, size) + body + struct.pack("<I", size))
        self.size += size


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


class Capture:
    """A capture that runs, on a thread of its own; a context manager that ends it.

    ``sock`` is a packet socket in the switch, bound to the member's port. The file is whole after :meth:`stop`, and
    readable up to the last packet at any time before.
    """

    def __init__(self, sock: socket.socket, path: str | os.PathLike[str], name: str, *, limit: int, snap: int) -> None:
        self._socket = sock
        self._limit, self._snap = limit, snap
        #: Packets written, and those that came faster than they were; whether the size limit was reached.
        self.packets: int = 0
        self.dropped: int = 0
        self.truncated: bool = False
        sock.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
        sock.setsockopt(_SOL_PACKET, _AUXILIARY, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
        self._wake, self._waker = socket.socketpair()
        try:
            self._file = open(path, "wb")  # noqa: SIM115
        except BaseException:
            for each in (sock, self._wake, self._waker):
                each.close()
            raise
        self._writer = Writer(self._file, name, snap)
        self._thread = threading.Thread(target=self._run, name="isolate-capture", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        with contextlib.closing(selector):
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._waker, selectors.EVENT_READ)
            ending = False
            while not ending and not self.truncated:
                ending = any(key.fileobj is self._waker for key, _ in selector.select())
                try:
                    self._take()
                except OSError:  # the device has gone, or the disk is full: what there is stays
                    ending = True
                with contextlib.suppress(OSError):
                    self._file.flush()

    def _take(self) -> None:
        """Take the packets that are there now."""
        for _ in range(1000):
            try:
                data, ancillary, _, address = self._socket.recvmsg(self._snap, 128)
            except BlockingIOError:
                return
            when, whole = time.time_ns(), len(data)
            for level, kind, content in ancillary:
                if level == _SOL_PACKET and kind == _AUXILIARY and len(content) >= 8:
                    (whole,) = struct.unpack_from("=I", content, 4)  # struct tpacket_auxdata: what there was
                if level == socket.SOL_SOCKET and kind == _SCM_TIMESTAMPNS and len(content) >= 16:
                    seconds, nanoseconds = struct.unpack("=qq", content[:16])
                    when = seconds * 10**9 + nanoseconds
            self._writer.packet(when, data, whole, outgoing=address[2] == _OUTGOING)
            self.packets += 1
            if self._writer.size >= self._limit:
                self.truncated = True
                return

    def stop(self) -> None:
        """Take what is still to be read, and close the file."""
        if self._file.closed:
            return
        self._wake.send(b"1")
        self._thread.join(10)
        with contextlib.suppress(OSError):
            seen, dropped = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8))
            self.dropped = dropped
            self._writer.statistics(time.time_ns(), seen, dropped)
        for each in (self._socket, self._wake, self._waker, self._file):
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        if hasattr(self, "_thread") and not self._file.closed:
            self.stop()
