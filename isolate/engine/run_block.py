"""The run block: what one run has beside the tape. Its arguments, environment, descriptors and limits."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from isolate.engine.native import lib

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RUN", "block_without_program", "run_block"]

RUN = struct.Struct("<14I2Q2IQ")
_FREE: int = lib.ISO_SLOT_FREE


def _nanoseconds(limit: float | None) -> int:
    """A limit for the launcher, which takes 0 for none. Rounded up: what was killed at a limit has reached it."""
    return 0 if limit is None else max(1, int(-(-limit * 1e9 // 1)))


def run_block(
    argv: Sequence[bytes],
    env: Sequence[bytes],
    *,
    program: bytes,
    path: bytes,
    cwd: bytes,
    fds: Sequence[tuple[int, int]],
    slots: int,
    started: bool,
    tty: bool,
    later: int = 0,
    timeout: float | None = None,
    cpu_time: float | None = None,
    alone: bool = False,
    terminal: tuple[int, int] = (0, -1),
    early: bool = False,
) -> bytes:
    """The block behind a tape: one program's arguments. ``fds`` are (slot, number inside), numbers ascending.
    ``later`` is the slot of a socket by which the block that holds will come. ``timeout`` and ``cpu_time`` are seconds
    after which the launcher kills everything. ``alone``: there is no program, init stays until it is killed.
    ``terminal`` is which streams (a mask) become a terminal of the sandbox's own, and its owner; -1 is whoever makes
    it. ``early``: the end is told before the clean-up, see :attr:`~isolate.engine.session.Session.early`."""
    strings = bytearray()
    at = RUN.size
    argv_at = at + (-at % 8)
    env_at = argv_at + 8 * (len(argv) + 1)
    fds_at = env_at + 8 * (len(env) + 1)
    base = fds_at + 8 * len(fds)

    def place(text: bytes) -> int:
        nonlocal strings
        offset = base + len(strings)
        strings += text + b"\0"
        return offset

    argv_offsets = [place(a) for a in argv]
    env_offsets = [place(e) for e in env]
    program_at, path_at, cwd_at = place(program), place(path), place(cwd)
    flags = (lib.ISO_RUN_STARTED if started else 0) | (lib.ISO_RUN_TTY if tty else 0)
    flags |= (lib.ISO_RUN_ALONE if alone else 0) | (lib.ISO_RUN_EARLY if early else 0)
    flags |= lib.ISO_RUN_PTY | terminal[0] << lib.ISO_RUN_PTY_SHIFT if terminal[0] else 0
    size = base + len(strings)
    head = RUN.pack(
        lib.ISO_RUN_MAGIC, size, flags, len(argv), argv_at, len(env), env_at, program_at, path_at, cwd_at,
        len(fds), fds_at, slots, later, _nanoseconds(timeout), _nanoseconds(cpu_time),
        terminal[1] & 0xFFFFFFFF, 0, 0,
    )  # fmt: skip  # in the order of the struct in C
    tables = struct.pack(f"<{len(argv) + len(env) + 2}Q", *argv_offsets, 0, *env_offsets, 0)
    pairs = struct.pack(f"<{2 * len(fds)}I", *(n for pair in fds for n in pair))
    return head + bytes(argv_at - RUN.size) + tables + pairs + bytes(strings)


def block_without_program(slots: int, *, later: bool) -> bytes:
    """The run block of a start for which no program is known yet, with so many slots of its plan's.

    With ``later`` one more slot is the socket that the program's block comes by. Otherwise there is no program at all,
    and init stays until it is killed.
    """
    return run_block(
        [b"-" if later else b"init"],
        [],
        program=b"-",
        path=b"",
        cwd=b"/",
        fds=[],
        slots=_FREE + slots + later,
        started=not later,
        tty=False,
        later=_FREE + slots if later else 0,
        alone=not later,
    )
