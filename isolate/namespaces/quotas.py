"""The limits of use inside a user namespace, in /proc/sys/user (namespaces(7), inotify(7))."""

from __future__ import annotations

import errno
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding
from isolate.engine.plan import Label, Op, Phase, Register, Step, call
from isolate.kernel.checks import is_int, nearest
from isolate.kernel.constants import AT_FDCWD, CLONE_NEWUSER, O_CLOEXEC, O_PATH, O_WRONLY
from isolate.kernel.namespaces import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context
    from isolate.kernel.constants import Constant

_CAP_SYS_ADMIN = 21
#: The ones that a program can use without privileges.
WATCHING = ("inotify_instances", "inotify_watches", "fanotify_groups", "fanotify_marks")
#: Those of user namespaces are limited by ``nested`` alone.
NAMESPACES = tuple(sorted(kind.limit for kind in KINDS if kind.flag != CLONE_NEWUSER))
_MOST = 2**31 - 1  # an int of the kernel's


def checked(given: object) -> tuple[tuple[str, int], ...] | None:
    """Quotas as sorted pairs.

    :raises ValueError: an unknown name, or a number that the kernel does not take.
    """
    if given is None:
        return None
    pairs = tuple(given.items()) if isinstance(given, Mapping) else tuple(given)  # type: ignore[arg-type]
    known = (*WATCHING, *NAMESPACES)
    for name, value in pairs:
        if name not in known:
            hint = nearest(str(name).removeprefix("max_"), known)
            hint = "; nested=True allows user namespaces inside" if name == "user_namespaces" else hint
            raise ValueError(f"UserNamespace: quotas are of {', '.join(known)}, not of {name!r}{hint}")
        if not is_int(value):
            raise TypeError(f"UserNamespace: the quota of {name} must be an int, not {value!r}")
        if not 0 <= value <= _MOST:
            raise ValueError(f"UserNamespace: the quota of {name} must be in 0 … {_MOST}, not {value}")
    return tuple(sorted(dict(pairs).items()))


@functools.cache
def _quarter(name: str) -> int | None:
    """A quarter of what the caller may have; None where the kernel does not count it."""
    try:
        with open(f"/proc/sys/user/max_{name}", encoding="ascii") as file:
            return int(file.read()) // 4
    except (OSError, ValueError):
        return None


def steps(said: Mapping[str, int], context: Context, *, nested: bool) -> Iterator[Step]:
    """The limits that are given by name, then the defaults of the others."""
    if said:
        yield _write(said, required=True)
    # Making a namespace takes CAP_SYS_ADMIN, which is there in a user namespace that is made inside.
    administers = any(_CAP_SYS_ADMIN in getattr(part, "permitted", ()) for part in context.parts)
    names = (*WATCHING, *(NAMESPACES if nested or administers else ()))
    usual = {name: most for name in names if name not in said and (most := _quarter(name)) is not None}
    if usual:
        yield _write(usual, required=False)


def _write(quotas: Mapping[str, int], *, required: bool) -> Step:
    directory, done = Register("sysctl"), Label()
    policy: dict[str, object] = {}
    if not required:
        policy = {"errors": (errno.EROFS, errno.ENOENT, errno.EACCES), "policy": "skip", "label": done}
    path = b"/proc/sys/user"
    ops: list[Op] = [call("openat", AT_FDCWD, path, O_PATH | O_CLOEXEC, 0, out=directory, **policy)]
    for name, most in quotas.items():
        ops += write_file(directory, b"max_" + name.encode(), b"%d" % most, **policy)
    words = ", ".join(f"{most} {name.replace('_', ' ')}" for name, most in quotas.items())
    return Step(
        Phase.QUOTAS,
        f"at most {words} inside (user.max_*{'' if required else ', where it can be written'})",
        (*ops, call("close", directory), done),
        path=path,
        hints={
            errno.EROFS: Finding("/proc/sys is read-only here (a container)", "leave quotas out"),
            errno.ENOENT: Finding("/proc is not mounted here, or this kernel has no such limit", "leave quotas out"),
        },
    )


def write_file(directory: Register | Constant, name: bytes, data: bytes, **policy: object) -> list[Op]:
    """Open an existing file, write it in one go, close it. ``policy`` goes to the call that opens."""
    fd = Register("file")
    return [
        call("openat", directory, name, O_WRONLY | O_CLOEXEC, 0, out=fd, **policy),
        call("write", fd, data, len(data), expect=len(data)),
        call("close", fd),
    ]
