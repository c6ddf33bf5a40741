"""A record: what a launcher tells of a start and of its end, by the control socket (``_native/tape.h``)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from isolate.engine.native import lib

__all__ = ["KIND", "RECORD", "Record", "decode"]

#: A message of this size alone has no more than its kind.
KIND = struct.Struct("<I")
RECORD = struct.Struct(f"<IiIIiiiI5QII{lib.ISO_HEAD}s")


class Record(NamedTuple):
    """A message from the launcher, decoded: bytes only, every length bounded by the message's own.

    A tuple: each start waits for two of them, and a frozen dataclass takes five times as long to be made.
    """

    kind: int
    error: int
    op: int
    stage: int
    status: int
    init_status: int
    complete: int
    user_ns: int
    system_ns: int
    max_rss: int
    wall_ns: int
    program_ns: int
    head: bytes
    skipped: bytes
    report: bytes


def decode(message: bytes) -> Record:
    """Decode a record.

    :raises ValueError: for anything but a whole one.
    """
    if len(message) < RECORD.size:
        raise ValueError(f"a record of {len(message)} bytes")
    values = RECORD.unpack_from(message)
    (*plain, head_size, user, system, rss, wall, program, skipped_size, report_size, head) = values
    end = RECORD.size + skipped_size
    if len(message) != end + report_size or head_size > len(head):
        raise ValueError("a record whose sizes do not add up")
    kind, error, op, stage, status, init_status, complete = plain
    return Record(
        kind, error, op, stage, status, init_status, complete, user, system, rss, wall, program,
        head[:head_size], message[RECORD.size : end], message[end:],
    )  # fmt: skip  # in the order of the struct in C
