"""The small filter that every sandbox has by default: it refuses user namespaces inside, and nothing else."""

from __future__ import annotations

from functools import lru_cache

from .conditions import arg
from .policy import Seccomp
from .rules import deny

__all__ = ["deny_user_namespaces"]

CLONE_NEWUSER = 0x10000000  # sched.h


@lru_cache(maxsize=1)
def deny_user_namespaces() -> bytes:
    """A small ready program: EPERM for ``clone`` and ``unshare`` with CLONE_NEWUSER, ENOSYS for ``clone3``, all else
    allowed.

    The kernel's other ABIs are covered by the same rules, so nothing but nested user namespaces changes.
    """
    policy = Seccomp(
        deny("clone", "unshare", when=(arg(0) & CLONE_NEWUSER) != 0),
        otherwise="allow",
        foreign="allow",
        compat=("i386", "x32", "arm"),
    )
    return policy.program()
