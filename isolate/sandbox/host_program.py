"""``HostProgram``: a program of the host that is run in the new mount namespace before the new root is entered."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isolate.engine.finding import Finding
from isolate.engine.plan import Phase, RunHost, Step
from isolate.kernel.checks import keywords
from isolate.kernel.paths import absolute, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context

__all__ = ["HostProgram"]


@keywords
@dataclass(frozen=True, init=False)
class HostProgram:
    """Run a program of the host as a step of the set-up: in the sandbox's namespaces, with its root built and not yet
    entered (what OCI calls a createContainer hook).

    .. code-block:: python

        HostProgram(["/usr/sbin/ldconfig", "-r", "/.."])

    It sees the host's files, with ``/..`` as the new root, where there is a :class:`Root`; it has the rights of who
    sets up (in a user namespace, those over it alone), an empty environment, no descriptor but the program's streams,
    and must end with 0: anything else ends the start. The program inside does not run yet. ``args`` are the absolute
    path and the arguments. Several of them run in their order of names.

    Needs what the program needs. It is trusted as the caller is: never a program that a sandbox could have written.

    >>> HostProgram(["/bin/true"]).args[0]
    b'/bin/true'
    """

    required: ClassVar[bool] = True
    repeatable: ClassVar[bool] = True

    args: tuple[bytes, ...]

    def __init__(self, args: Iterable[str | bytes | os.PathLike[str]]) -> None:
        if isinstance(args, (str, bytes)) or not isinstance(args, Iterable):
            raise TypeError(f"HostProgram: args must be a list of a path and arguments, not {args!r}")
        found = tuple(os.fsencode(arg) for arg in args)
        if not found:
            raise ValueError("HostProgram: which program?")
        if any(b"\0" in arg for arg in found):
            raise ValueError("HostProgram: an argument holds a NUL byte")
        absolute(found[0], "HostProgram: the program")
        object.__setattr__(self, "args", found)

    def __repr__(self) -> str:
        return f"HostProgram({[os.fsdecode(arg) for arg in self.args]!r})"

    def steps(self, context: Context) -> Iterator[Step]:
        """One step of init."""
        yield Step(
            Phase.SYSTEM,
            f"run the host's {text(self.args[0])}, and wait for it",
            (RunHost(self.args[0], self.args),),
            path=self.args[0],
            hints={
                errno.ECHILD: Finding(
                    "it failed: it ended with another status than 0",
                    "run it by hand and read what it says; its output goes nowhere here",
                ),
                errno.ENOENT: Finding("the host has no such program", "install it, or name its path on the host"),
                errno.EACCES: Finding(
                    "it may not be executed", "name a program, and let this user execute it: chmod a+x"
                ),
            },
        )
