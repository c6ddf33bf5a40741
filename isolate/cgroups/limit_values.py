"""Reading of the values that limits take: sizes, sets of cpus, devices. Bad ones are refused with a reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping

from isolate.kernel import checks

#: A size: bytes, ``"256M"`` (binary multiples), or ``"max"`` for no limit.
Size = int | str


def parse_list(name: str, text: str) -> frozenset[int]:
    """The numbers of a kernel list such as ``0-3,8`` (cpuset(7), "List format")."""
    found: set[int] = set()
    for piece in text.strip().split(","):
        if not piece:
            continue
        first, dash, last = piece.strip().partition("-")
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise ValueError(f"{name}: {text!r} is no list like '0-3,8'")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high >= 1 << 16:
            raise ValueError(f"{name}: {piece!r} is no range of cpus or nodes")
        found.update(range(low, high + 1))
    return frozenset(found)


def format_list(numbers: Iterable[int]) -> str:
    """As the kernel prints it: ascending, neighbours joined."""
    pieces: list[list[int]] = []
    for n in sorted(set(numbers)):
        if pieces and n == pieces[-1][1] + 1:
            pieces[-1][1] = n
        else:
            pieces.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in pieces)


def number_set(name: str, value: str | Iterable[int] | int) -> str:
    """A set of cpus or memory nodes in the kernel's list format."""
    if isinstance(value, int):
        value = (value,)
    if isinstance(value, str):
        numbers = parse_list(name, value)
    else:
        numbers = frozenset(checks.integer(name, n, 0, (1 << 16) - 1) for n in value)
    if not numbers:
        raise ValueError(f"{name}: an empty set leaves nothing to run on")
    return format_list(numbers)


def mapping(name: str, value: object) -> Mapping[object, object]:
    """A mapping, or TypeError."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, not {value!r}")
    return value


def is_device_number(text: str) -> bool:
    """Whether it looks like ``8:0``."""
    major, colon, minor = text.partition(":")
    return bool(colon) and all(p.isascii() and p.isdigit() for p in (major, minor))


def disk_of(name: str, path: str) -> str:
    """``major:minor`` of the disk that a block device or file lies on: limits apply to disks, not to partitions.

    :raises ValueError: a character device, or a file system that lies on no block device (tmpfs, overlay, btrfs).
    """
    if is_device_number(path):
        device = path
    else:
        try:
            status = os.stat(path)
        except OSError as error:
            raise ValueError(f"{name}: {path}: {error.strerror}") from None
        if stat.S_ISCHR(status.st_mode):
            raise ValueError(f"{name}: {path} is a character device, not a block device")
        number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
        device = f"{os.major(number)}:{os.minor(number)}"
        if os.major(number) == 0:
            raise ValueError(f"{name}: {path} lies on a file system without a block device ({device})")
    entry = os.path.realpath(f"/sys/dev/block/{device}")
    if not os.path.isdir(entry):
        raise ValueError(f"{name}: there is no block device {device}")
    if os.path.exists(os.path.join(entry, "partition")):
        with open(os.path.join(os.path.dirname(entry), "dev"), encoding="ascii") as file:
            device = file.read().strip()
    return device
