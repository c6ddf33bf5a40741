"""Netlink: one batch of requests, and the kernel's answers to them (netlink(7), rtnetlink(7)).

A :class:`Socket` acts in the network namespace that it was made in, whatever namespace its user is in. The kernel asks
for CAP_NET_ADMIN in the user namespace that owns that network: of whoever sends, since every request here names the
kernel as its destination.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from isolate.engine.native import ffi, lib
from isolate.errors import SetupError, UnsupportedError
from isolate.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from isolate.network.forms import Form

__all__ = [
    "NETFILTER",
    "ROUTE",
    "Answer",
    "Message",
    "Socket",
    "Words",
    "attach",
    "attribute",
    "attributes",
    "framed",
    "nested",
    "packed",
    "text",
]

ROUTE, NETFILTER = 0, 12
REQUEST, ACK, DUMP, CREATE, EXCLUSIVE, REPLACE = 0x1, 0x4, 0x300, 0x400, 0x200, 0x100
_NOOP, _ERROR, _DONE = 1, 2, 3
_MULTI, _CAPPED, _TLVS = 0x2, 0x100, 0x200
_ERR_MESSAGE = 1  # NLMSGERR_ATTR_MSG
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_PAIR = struct.Struct("=HH")
_NUMBER = struct.Struct("=HHI")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by the size's last two bits
#: Bytes for what is asked for.
_LARGE = 1 << 18

#: errno -> likely cause and remedy, and whether this host cannot do it at all.
FINDINGS: dict[int, tuple[str, str | None]] = {
    errno.EPERM: (
        "it needs CAP_NET_ADMIN in the user namespace that owns the network",
        "be root, or let the network have a user namespace of its own",
    ),
    errno.EOPNOTSUPP: ("this kernel was built without it, or its module is not loaded", "python -m isolate doctor"),
    errno.EEXIST: ("it is there already", None),
    errno.ENODEV: ("the device has gone", None),
    errno.ENOBUFS: ("the kernel is short of memory for the answers", None),
}


# ---- attributes ------------------------------------------------------------------------------------------------------


def attribute(kind: int, data: bytes | int = b"", width: int = 4) -> bytes:
    """A struct nlattr: ``data`` are its bytes, or a number of ``width`` bytes in the machine's order."""
    if isinstance(data, int):
        if width == 4:
            return _NUMBER.pack(8, kind, data)
        data = data.to_bytes(width, "little")
    size = len(data)
    return _PAIR.pack(4 + size, kind) + data + _PADDING[size & 3]


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that holds attributes."""
    data = b"".join(inner)
    return _PAIR.pack(4 + len(data), kind | _NESTED) + data + _PADDING[len(data) & 3]


@functools.lru_cache(maxsize=512)
def text(kind: int, value: str | bytes) -> bytes:
    """An attribute that holds a string with its NUL."""
    return attribute(kind, (os.fsencode(value) if isinstance(value, str) else value) + b"\0")


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by their kind; of a kind that is there twice the last one. What is cut off at the end is left out."""
    return dict(_pairs(data))


def _pairs(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        size, kind = _PAIR.unpack_from(data, at)
        if size < 4 or at + size > len(data):
            return
        yield kind & 0x3FFF, data[at + 4 : at + size]
        at += size + (-size % 4)


# ---- messages --------------------------------------------------------------------------------------------------------


class Words:
    """The words of a request, put together when somebody reads them: an address as text costs more than its use."""

    __slots__ = ("_form", "_values")

    def __init__(self, form: str, *values: object) -> None:
        self._form, self._values = form, values

    def __str__(self) -> str:
        return self._form.format(*self._values)


class Message(NamedTuple):
    """A request: its kind (RTM_…), its flags besides NLM_F_REQUEST, what stands behind the header, and in words."""

    kind: int
    flags: int
    body: bytes
    step: str | Words = ""


def _packed(message: Message, flags: int, number: int = 0) -> bytes:
    body = message.body
    header = _HEADER.pack(16 + len(body), message.kind, message.flags | REQUEST | flags, number, 0)
    return header + body + _PADDING[len(body) & 3]


def packed(messages: Sequence[Message]) -> bytes:
    """Requests for :meth:`Socket.exchange`, of which the last one asks for an answer."""
    last = len(messages) - 1
    return b"".join([_packed(message, ACK if i == last else 0) for i, message in enumerate(messages)])


def framed(subsystem: int, messages: Sequence[Message]) -> bytes:
    """The same as a batch that holds whole or not at all (nfnetlink), which is two messages more."""
    frame = struct.pack(">BBH", 0, 0, subsystem)  # struct nfgenmsg: AF_UNSPEC, version, res_id
    begin, end = (_packed(Message(kind, 0, frame), 0) for kind in (16, 17))  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
    return begin + packed(messages) + end


class Answer(NamedTuple):
    """One message of the kernel's."""

    kind: int
    body: bytes


@dataclass(frozen=True)
class Failure:
    """An error that the kernel answered to one of a batch: errno, its own words, the attribute it points to."""

    index: int
    errno: int
    words: str | None


class Socket(Closing):
    """A netlink socket, in the network namespace of the thread that makes it; or one that was made elsewhere.

    Not for two threads at once.
    """

    __slots__ = ("_sequence", "_socket", "part", "protocol")

    def __init__(self, protocol: int = ROUTE, *, made: socket.socket | None = None, part: str = "Network") -> None:
        self.protocol: int = protocol
        self.part: str = part
        if made is None:
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket = made
        if made.gettimeout() is not None:
            made.setblocking(True)
        # The kernel's own limit of time: with Python's each call would be preceded by a poll(2). And answers have the
        # kernel's own words, and not our request once more.
        failed = lib.iso_netlink_prepare(made.fileno(), protocol == ROUTE)
        if failed:
            raise OSError(-failed, os.strerror(-failed))
        self._sequence = 0

    def fileno(self) -> int:
        """Its descriptor."""
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Close it. Tables of nftables that it owns go with it."""
        self._socket.close()

    # ---- asking --------------------------------------------------------------------------------------------------

    def batch(self, messages: Sequence[Message], *, tolerate: Mapping[int, tuple[int, ...]] | None = None) -> None:
        """Send requests in one call, and take the answer to each.

        ``tolerate`` are errnos that count as success, by the request's index.

        :raises SetupError: the first that failed, with the kernel's words as the cause. Those behind it were tried too.
        """
        for failure in self.tried(messages):
            if tolerate and failure.errno in tolerate.get(failure.index, ()):
                continue
            raise self.error(failure, messages[failure.index].step)

    def tried(self, messages: Sequence[Message]) -> list[Failure]:
        """The same, with the failures as a list."""
        failures: list[Failure] = []
        for first in range(0, len(messages), 64):  # the answers must find room in the socket's buffer
            part = messages[first : first + 64]
            failures += [replace(each, index=each.index + first) for each in self.exchange(packed(part), len(part))]
        return failures

    def transaction(self, subsystem: int, messages: Sequence[Message]) -> None:
        """Send requests that hold all or none: nftables (nfnetlink's batch).

        :raises SetupError: the first that failed; nothing has changed then.
        """
        failures = self.exchange(framed(subsystem, messages), len(messages) + 2, framed=True)
        if failures:
            failure = failures[0]
            index = failure.index - 1
            step = messages[index].step if 0 <= index < len(messages) else "commit the batch"
            raise self.error(failure, step)

    def exchange(self, data: bytes, count: int, *, framed: bool = False) -> list[Failure]:
        """Send ``count`` requests of :func:`packed`, or of :func:`framed`; the failures among the answers.

        Errors are told unasked; the answer to the last one that asks says that there are no more.
        """
        begin = self._sequence + 1
        self._sequence += count
        found = lib.iso_netlink(self._socket.fileno(), data, len(data), begin, framed)
        return self._failures(found, begin) if found else []

    def _failures(self, found: int, begin: int) -> list[Failure]:
        if found < 0:
            number = -found & ~lib.ISO_NETLINK_RECEIVING
            sending = number == -found
            raise SetupError(
                number,
                "send a batch to the kernel" if sending else "take the kernel's answer",
                part=self.part,
                syscall="sendto" if sending else "recvfrom",
                cause=None if sending else FINDINGS.get(number, (None, None))[0],
            )
        answers = ffi.cast("struct iso_answers *", found)
        try:
            data = bytes(ffi.buffer(answers.data, answers.size))
        finally:
            lib.iso_netlink_free(answers)
        failures = (_failure(number - begin, flags, body) for _, flags, number, body in _messages(data))
        return [each for each in failures if each is not None]

    def ask(self, message: Message) -> list[Answer]:
        """A request for something: the messages that come back, of a dump (NLM_F_DUMP) all of them.

        :raises SetupError: the kernel refuses it, or has nothing of that name (ENODEV).
        """
        begin = self._sequence = self._sequence + 1
        dump = message.flags & DUMP == DUMP
        self._send(_packed(message, 0 if dump else ACK, begin))
        found: list[Answer] = []
        while True:
            for kind, flags, number, body in self._receive(_LARGE):
                if number != begin:
                    continue
                if kind == _ERROR:
                    failure = _failure(0, flags, body)
                    if failure is not None:
                        raise self.error(failure, message.step)
                    return found
                if kind == _DONE:
                    return found
                found.append(Answer(kind, body))

    def error(self, failure: Failure, step: str | Words) -> SetupError:
        """The error that a person reads."""
        step = str(step)
        cause, remedy = FINDINGS.get(failure.errno, (None, None))
        words = f"the kernel says: {failure.words}" if failure.words else None
        # The kernel's words say more than the usual cause, unless a capability is missing.
        if failure.errno != errno.EPERM or cause is None:
            cause = words or cause
        kind = UnsupportedError if failure.errno == errno.EOPNOTSUPP else SetupError
        return kind(failure.errno, step, part=self.part, syscall="sendto", cause=cause, remedy=remedy)

    # ---- inside --------------------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            step = "send a batch to the kernel"
            raise SetupError(error.errno or errno.EIO, step, part=self.part, syscall="sendto") from None

    def _receive(self, room: int) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            data, (sender, _) = self._socket.recvfrom(room)
        except BlockingIOError:
            raise SetupError(errno.ETIMEDOUT, "take the kernel's answer", part=self.part, syscall="recvfrom") from None
        except OSError as error:
            raise SetupError(
                error.errno or errno.EIO,
                "take the kernel's answer",
                part=self.part,
                syscall="recvfrom",
                cause=FINDINGS.get(error.errno or 0, (None, None))[0],
            ) from None
        if not sender:  # other processes can write to a socket too: the kernel's port is 0
            yield from _messages(data)


def attach(route: Socket, filters: Socket, inside: Socket, form: Form, values: bytes) -> int:
    """Send a form's three batches by these sockets, and have the wire carry; which of them failed (from 1), or 0.

    The values begin with four bytes for a descriptor of the network that ``inside`` is of, and 16 for the port's name.
    -1: nothing was sent.
    """
    of_route, of_filters, of_inside = form.counts
    first = route._sequence + 1, filters._sequence + 1, inside._sequence + 1
    route._sequence += of_route
    filters._sequence += of_filters
    inside._sequence += of_inside
    fds = route._socket.fileno(), filters._socket.fileno(), inside._socket.fileno()
    return lib.iso_netlink_attach(*fds, *first, form.data, len(form.data), values, len(values))


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Of each message its kind, its flags, its number, and what stands behind the header."""
    at = 0
    while at + 16 <= len(data):
        size, kind, flags, number, _ = _HEADER.unpack_from(data, at)
        if size < 16 or at + size > len(data):
            return
        yield kind, flags, number, data[at + 16 : at + size]
        at += size + (-size % 4)


def _failure(index: int, flags: int, body: bytes) -> Failure | None:
    """The error of an acknowledgement; None if it says success."""
    if len(body) < 20:
        return Failure(index, errno.EBADMSG, None)
    error, size = struct.unpack_from("=iI", body)
    if error == 0:
        return None
    words = None
    if flags & _TLVS:
        at = 20 if flags & _CAPPED else 4 + size + (-size % 4)
        said = attributes(body[at:]).get(_ERR_MESSAGE)
        if said is not None:
            words = said.rstrip(b"\0").decode("utf-8", "backslashreplace")
    return Failure(index, -error, words)
