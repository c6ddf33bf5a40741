"""What holds in a sandbox unless its user says otherwise.

Each is a part that a user may name to change it; ``explain()`` shows them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isolate.kernel import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG
from isolate.namespaces import PidNamespace
from isolate.plan import CWD, Buffer, Context, Engine, Load, Part, Phase, Step, Test, call

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["DEFAULT_PATH", "Launch", "defaults"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CAPABILITY_VERSION_3 = 0x20080522
_CAP_KILL = 5


@dataclass(frozen=True)
class Launch:
    """The steps that every start has: waiting for the id maps, the session, the program, the descriptors."""

    required: ClassVar[bool] = True

    def steps(self, context: Context) -> Iterator[Step]:
        """Steps of init and of the payload."""
        yield Step(Phase.SYNC, "wait until the supervisor has written the id maps", (Engine("sync"),))
        yield Step(Phase.HARDEN, "not dumpable: nobody inside can trace init", (call("prctl", PR_SET_DUMPABLE, 0),))
        yield Step(Phase.SESSION, "new session, without a terminal unless one is given", (Engine("session"),))
        yield Step(
            Phase.DIRECTORY,
            "enter the working directory",
            (call("chdir", CWD),),
            hints={2: "the working directory does not exist inside", 13: "the payload may not enter the working directory"},
        )
        yield Step(Phase.PROGRAM, "find the program", (Engine("find"),))
        path = Buffer(4096, "path")
        yield Step(
            Phase.VERIFY,
            "the working directory is inside the root",
            # The kernel says "(unreachable)/…" of a directory outside: the class of CVE-2024-21626.
            (call("getcwd", path, 4096), Test(Load(path, 0, 4), ord("/"), mask=0xFF, error=18)),
        )
        yield Step(Phase.DESCRIPTORS, "close every descriptor but 0, 1, 2 and those passed", (Engine("fds"),))
        if context.find(PidNamespace) is None:
            # With a pid namespace the kernel ends everything with init; without, at least the program itself.
            yield Step(Phase.DESCRIPTORS, "die with init", (call("prctl", PR_SET_PDEATHSIG, 9),))
        yield Step(Phase.EXEC, "execute the program", (Engine("exec"),))
        header = Buffer(_CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4), "header")
        kept = (1 << _CAP_KILL).to_bytes(4, "little")
        sets = Buffer(kept + kept + bytes(16), "sets")
        yield Step(
            Phase.AFTER,
            "init keeps no capability but CAP_KILL (to forward signals)",
            (
                call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                # An ordinary user without a user namespace has none to give up, and may not raise one.
                call("capset", header, sets, errors=(1,)),
            ),
        )


def defaults(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts with what is in force by default."""
    given = tuple(parts)
    extra: list[Part] = [Launch()]
    return (*given, *extra)
