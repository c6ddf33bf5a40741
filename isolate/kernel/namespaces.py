"""The kinds of namespaces that the kernel has (namespaces(7)), and the names that it has for each."""

from __future__ import annotations

import os
from typing import NamedTuple

from isolate.kernel.constants import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    Constant,
)

__all__ = ["KINDS", "Kind", "by_file", "by_flag", "by_word", "children_elsewhere", "within"]


class Kind(NamedTuple):
    """One kind of namespace."""

    #: For clone(2), unshare(2) and setns(2).
    flag: Constant
    #: In /proc/PID/ns, and in the name of its limit, /proc/sys/user/max_…_namespaces.
    file: str
    #: In sentences, and in the configuration of an OCI runtime.
    word: str
    #: The option that the kernel is built with.
    option: str
    #: The file in /proc/PID/ns of the one that children are born in. It differs where unshare(2) moves only those.
    for_children: str

    @property
    def typed(self) -> str:
        """The word that people type for it, in :func:`isolate.attach` and on the command line."""
        return "net" if self.file == "net" else self.word

    @property
    def limit(self) -> str:
        """How many of it a user may have: the name in /proc/sys/user, without ``max_``."""
        return f"{self.file}_namespaces"


KINDS = (
    Kind(CLONE_NEWUSER, "user", "user", "USER_NS", "user"),
    Kind(CLONE_NEWPID, "pid", "pid", "PID_NS", "pid_for_children"),
    Kind(CLONE_NEWNS, "mnt", "mount", "NAMESPACES", "mnt"),
    Kind(CLONE_NEWNET, "net", "network", "NET_NS", "net"),
    Kind(CLONE_NEWIPC, "ipc", "ipc", "IPC_NS", "ipc"),
    Kind(CLONE_NEWUTS, "uts", "uts", "UTS_NS", "uts"),
    Kind(CLONE_NEWCGROUP, "cgroup", "cgroup", "CGROUPS", "cgroup"),
    Kind(CLONE_NEWTIME, "time", "time", "TIME_NS", "time_for_children"),
)

_FLAGS = {int(kind.flag): kind for kind in KINDS}
_FILES = {kind.file: kind for kind in KINDS}
_WORDS = {kind.word: kind for kind in KINDS}


def by_flag(flag: int) -> Kind:
    """The kind with this flag of clone(2)."""
    return _FLAGS[int(flag)]


def by_file(file: str) -> Kind:
    """The kind whose file in /proc/PID/ns has this name."""
    return _FILES[file]


def by_word(word: str) -> Kind:
    """The kind that this word stands for in sentences."""
    return _WORDS[word]


def within(flags: int) -> list[Kind]:
    """The kinds among flags of clone(2), in the order of their bits."""
    return [_FLAGS[bit] for bit in sorted(_FLAGS) if flags & bit]


def children_elsewhere(proc: str = "/proc") -> bool:
    """Whether this thread's children get another pid namespace than its own: by unshare(2), setns(2), a block."""
    try:
        own, theirs = (os.readlink(f"{proc}/thread-self/ns/{kind}") for kind in ("pid", "pid_for_children"))
    except OSError:
        # A new one without a process has no identity yet (ENOENT). If anything else keeps us from knowing: whoever asks
        # does what is right in either case.
        return True
    return own != theirs
