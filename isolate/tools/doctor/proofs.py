"""Denials are met, not believed: a program inside tries what must fail, and the same program without it succeeds."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.sandbox.box import Sandbox
from isolate.sandbox.result import Verdict

if TYPE_CHECKING:
    from isolate.cgroups.limits import Limits
    from isolate.engine.plan import Part

_DENIED = 3
_TIME = 20
_LOW = 64


@dataclass(frozen=True)
class Proof:
    """The attempt that was denied inside and possible outside."""

    words: str
    detail: str = ""


class NotDenied(OSError):
    """The part is in force by the kernel's word, and yet the attempt succeeded; or the control did not."""


def _possible(code: str, *parts: Part) -> bool:
    """Whether a program with these parts can do it: the code raises OSError where it cannot."""
    text = f"import os, sys\ntry:\n    {code}\nexcept (OSError, MemoryError):\n    sys.exit({_DENIED})\n"
    result = Sandbox(*parts).run([sys.executable, "-I", "-S", "-c", text], timeout=_TIME, text=True)
    if result.verdict is Verdict.OOM or result.returncode == _DENIED:
        return False
    if result.ok:
        return True
    raise OSError(f"the attempt itself failed: {result.verdict} {(result.stderr or '').strip()[-200:]}")


def _prove(words: str, code: str, parts: list[Part], without: list[Part], detail: str = "") -> Proof:
    if _possible(code, *parts):
        raise NotDenied(f"{words}: that was possible, though the part is in force")
    if not _possible(code, *without):
        raise NotDenied(f"{words}: that fails here without the part as well, so nothing is proven")
    return Proof(words, detail)


def namespace(base: list[Part], kind: str, part: Part) -> Proof | None:
    """A new namespace of this kind."""
    if kind == "pid" and os.getpid() > _LOW:  # a low number is some process's in a new namespace as well
        words = "a process outside cannot be signalled"
        return _prove(words, f"os.kill({os.getpid()}, 0)", [*base, part], base)
    if kind == "net":
        return _network([*base, part], base)
    file = f"/proc/self/ns/{ {'mount': 'mnt'}.get(kind, kind) }"
    try:
        own = os.readlink(file)
    except OSError:  # no /proc to compare by
        Sandbox(*base, part).check()
        return None
    code = f"if os.readlink({file!r}) != {own!r}: raise OSError"
    return _prove("another namespace than the caller's", code, [*base, part], base)


def _network(parts: list[Part], without: list[Part]) -> Proof:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("")  # an abstract address that the kernel chooses: it belongs to this network namespace
        listener.listen()
        address = listener.getsockname()
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({address!r})"
        return _prove("a listener outside cannot be reached", code, parts, without)


def seccomp() -> Proof:
    """The default filter, with one more call refused."""
    from isolate.seccomp import Seccomp
    from isolate.seccomp.rules import deny

    policy = Seccomp.default()
    code = "os.getpriority(os.PRIO_PROCESS, 0)"
    return _prove("a system call that is not allowed fails", code, [policy + deny("getpriority")], [policy])


def landlock(detail: str) -> Proof:
    """A rule about one right."""
    from isolate.landlock.part import Landlock
    from isolate.landlock.rights import FsAccess

    part = Landlock(rules=[], handled=FsAccess.WRITE_FILE)
    return _prove("a file cannot be opened for writing", "open('/dev/null', 'wb', 0)", [part], [], detail)


def limit(name: str, part: Limits) -> Proof | None:
    """A limit by cgroup. The library reads each back; of two that can be reached at once it is reached."""
    if name == "cgroup-pids":
        code = "[(os.fork() or os.read(os.pipe()[0], 1)) for _ in range(12)]"
        return _prove("a process beyond the limit cannot be made", code, [part], [])
    if name == "cgroup-memory":
        return _prove("memory beyond the limit cannot be used", "len(b'x' * (96 << 20))", [part], [])
    if name == "cgroup-cpuset" and len(os.sched_getaffinity(0)) > 1:
        code = "if len(os.sched_getaffinity(0)) == 1: raise OSError"
        return _prove("other processors cannot be used", code, [part], [])
    return None
