"""A small filter for programs that can write to files of the host: none is left there that gives rights to others.

A file with the set-user-ID bit runs with its owner's rights, whoever executes it. Inside, ``nosuid`` and
``no_new_privs`` take the effect away; on the host the same file lies in a directory without either.
"""

from __future__ import annotations

from functools import lru_cache

from .conditions import arg, arg32
from .policy import Seccomp
from .rules import Rule, deny

__all__ = ["CREATING", "SET_ID", "no_set_id_files"]

SET_ID = 0o6000  # S_ISUID, S_ISGID
#: O_CREAT and the kernel's bit of O_TMPFILE: without one of them open's mode is not looked at, and is any number.
CREATING = 0o100 | 0o20000000
_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000


def _modes() -> list[Rule]:
    """Rules for calls that set a file's mode. ``openat2`` and io_uring, whose modes no filter sees, answer ENOSYS."""
    rules = [
        deny("chmod", "fchmod", "creat", "mknod", when=(arg32(1) & SET_ID) != 0),
        deny("fchmodat", "fchmodat2", "mknodat", when=(arg32(2) & SET_ID) != 0),
        deny("open", when=((arg32(1) & CREATING) != 0) & ((arg32(2) & SET_ID) != 0)),
        deny("openat", when=((arg32(2) & CREATING) != 0) & ((arg32(3) & SET_ID) != 0)),
    ]
    # Device nodes, for whoever has CAP_MKNOD: outside, in a mount without nodev, they are the host's devices. The
    # device 0:0 is none: it is how overlayfs says that a file has been removed.
    for name, at in (("mknod", 1), ("mknodat", 2)):
        rules.append(deny(name, when=(arg32(at) & _S_IFMT) == _S_IFBLK))
        rules.append(deny(name, when=((arg32(at) & _S_IFMT) == _S_IFCHR) & (arg(at + 1) != 0)))
    return rules


@lru_cache(maxsize=2)
def no_set_id_files(*, attributes: bool = False) -> Seccomp:
    """EPERM for a mode with S_ISUID or S_ISGID and for device nodes; all else is allowed.

    With ``attributes`` extended attributes cannot be set either (EOPNOTSUPP): a filter cannot read their names, and
    "security.capability", which a program with CAP_SETFCAP may set, gives to a file what the set-user-ID bit does.
    """
    rules = _modes()
    if attributes:
        rules.append(deny("setxattr", "lsetxattr", "fsetxattr", "setxattrat", errno="EOPNOTSUPP"))
    policy = Seccomp(*rules, otherwise="allow", foreign="allow", compat=("i386", "x32", "arm"))
    return Seccomp.from_bpf(policy.program())
