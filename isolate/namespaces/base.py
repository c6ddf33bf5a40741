"""The common base of all kinds of namespaces: a part makes a new one, or joins one that exists."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isolate.engine.finding import Finding
from isolate.engine.plan import (
    Context,
    Phase,
    Register,
    Step,
    call,
)
from isolate.errors import ConflictError
from isolate.kernel.checks import integer
from isolate.kernel.constants import (
    AT_FDCWD,
    O_CLOEXEC,
    O_RDONLY,
    Constant,
)
from isolate.namespaces.handle import Handle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.thread.change import Change

__all__ = ["Namespace"]


@dataclass(frozen=True, kw_only=True)
class Namespace(Handle):
    """New, or joined by one of ``path``, ``pid`` and ``fd``."""

    path: str | bytes | os.PathLike[str] | None = None
    pid: int | None = None
    fd: int | None = None

    kind: ClassVar[str]
    flag: ClassVar[Constant]

    def __post_init__(self) -> None:
        given = [n for n in ("path", "pid", "fd") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ConflictError(f"{type(self).__name__}: {' and '.join(given)} both name a namespace to join")
        if self.path is not None:
            path = os.fsencode(self.path)
            if not path.startswith(b"/") or b"\0" in path:
                raise ValueError(f"the path of a namespace must be absolute and without NUL, not {path!r}")
        for name, lowest in (("pid", 1), ("fd", 0)):
            value = getattr(self, name)
            if value is not None:
                integer(f"{type(self).__name__}: {name}", value, lowest)

    @property
    def joined(self) -> bool:
        """Whether the namespace exists already."""
        return not (self.path is None and self.pid is None and self.fd is None)

    def here(self) -> Change:
        """This thread in the namespace, and back."""
        from isolate.namespaces.change import NamespaceChange

        return NamespaceChange(self, self.flag)

    def steps(self, context: Context) -> Iterator[Step]:
        """A flag for clone, or setns in the supervisor."""
        if self.joined:
            yield self._join(context)
        else:
            yield Step(Phase.CLONE, f"new {self.kind} namespace", clone_flags=self.flag)

    def _join(self, context: Context, phase: Phase = Phase.JOIN) -> Step:
        fd = Register("namespace")
        needed = f"joining a {self.kind} namespace needs CAP_SYS_ADMIN in it and in the caller's user namespace"
        hints = {errno.EPERM: Finding(needed, "join the user namespace that owns it, too, or run as root")}
        if self.path is not None:
            path = os.fsencode(self.path)
            ops = (
                call("openat", AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, out=fd),
                call("setns", fd, self.flag),
                call("close", fd),
            )
            return Step(phase, f"join the {self.kind} namespace {os.fsdecode(path)}", ops, path=path, hints=hints)
        if self.pid is not None:
            ops = (call("pidfd_open", self.pid, 0, out=fd), call("setns", fd, self.flag), call("close", fd))
            gone = {errno.ESRCH: Finding("there is no such process, or it has ended", "name one that runs, or a path")}
            text = f"join the {self.kind} namespace of process {self.pid}"
            return Step(phase, text, ops, hints={**hints, **gone})
        slot = context.descriptor(self.fd if self.fd is not None else -1)
        return Step(
            phase,
            f"join the {self.kind} namespace of descriptor {self.fd}",
            (call("setns", slot, self.flag),),
            hints=hints,
        )
