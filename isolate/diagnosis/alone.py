"""Whether the kernel makes mount namespaces without a copy of the caller's table.

Linux 7.0 has OPEN_TREE_NAMESPACE for open_tree(2), Linux 7.1 FSMOUNT_NAMESPACE for fsmount(2) and CLONE_EMPTY_MNTNS for
clone3(2). Each call here is one that fails on every kernel, so nothing is made: a kernel that does not know the flag
says EINVAL, and one that does gets as far as a descriptor that is not there, or as a right that the caller has not. A
filter may answer in the kernel's place; it is told by its answer to a flag that no kernel knows.
"""

from __future__ import annotations

import errno
from typing import Final

from isolate.engine import native
from isolate.engine.native import ffi
from isolate.kernel.syscalls import number

__all__ = ["WAYS", "answer", "made_alone"]

_NOBODY: Final = 0x7FFFFFFF  # a descriptor that no process can have: fs.nr_open is below it
_UNKNOWN: Final = 1 << 30  # a flag of neither open_tree nor fsmount
_CLONE_INTO_CGROUP: Final = 1 << 33
_UNKNOWN_OF_CLONE: Final = 1 << 62
#: The call, and its flag.
WAYS: Final = {"open_tree": 1 << 1, "fsmount": 1 << 1, "clone3": 1 << 37}


def _open_tree(flags: int) -> int:
    return native.call(number("open_tree"), _NOBODY, b"nothing\0", flags)


def _fsmount(flags: int) -> int:
    return native.call(number("fsmount"), _NOBODY, flags, 0)


def _clone3(flags: int) -> int:
    """A child that is to be born into a group that is not there: the kernel makes none."""
    arguments = ffi.new("uint64_t[11]")
    arguments[0], arguments[10] = flags | _CLONE_INTO_CGROUP, _NOBODY
    return native.call(number("clone3"), arguments, 88)


def answer(known: int, unknown: int) -> bool | None:
    """The meaning of two results: that of the flag, and that of a flag that no kernel has. None: it cannot be told."""
    if unknown != -errno.EINVAL or known >= 0:
        return None  # a filter's answer; or a kernel that takes whatever it is given
    return known != -errno.EINVAL


def made_alone() -> dict[str, bool | None]:
    """By the name of the call, whether it can make such a namespace; None where that cannot be told.

    >>> set(made_alone()) == {"open_tree", "fsmount", "clone3"}
    True
    """
    return {
        "open_tree": answer(_open_tree(WAYS["open_tree"]), _open_tree(_UNKNOWN)),
        "fsmount": answer(_fsmount(WAYS["fsmount"]), _fsmount(_UNKNOWN)),
        "clone3": answer(_clone3(WAYS["clone3"]), _clone3(_UNKNOWN_OF_CLONE)),
    }
