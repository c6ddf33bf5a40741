"""``Sandbox.check``: everything of a start but the program."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.engine.plan import Engine, Phase, Step
from isolate.errors import SetupError
from isolate.sandbox.defaults import Launch
from isolate.sandbox.result import Verdict
from isolate.sandbox.streams import DEVNULL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context
    from isolate.sandbox.verbs import Verbs

__all__ = ["EndAtOnce", "check"]

_EXECUTE = "be allowed to execute a program"


@dataclass(frozen=True)
class EndAtOnce(Launch):
    """:class:`~isolate.sandbox.defaults.Launch` without a program: it is not looked up, and none is executed.

    Executing needs a file inside, and an empty root has none. Everything before stands as it would, the filter too; so
    what is asked of execve is whether it may be called: without a path, it answers EFAULT to whoever may.
    """

    def steps(self, context: Context) -> Iterator[Step]:
        """Those of a start, with other ends."""
        for step in super().steps(context):
            if step.phase is Phase.EXEC:
                yield Step(Phase.EXEC, _EXECUTE, (Engine("exec"),))
            elif step.phase is not Phase.PROGRAM:
                yield step


EndAtOnce.__name__ = Launch.__name__  # what an error names


def check(box: Verbs) -> None:
    """Set a sandbox up, with all of its parts in force, execute nothing, and take it down.

    ``box`` has :class:`EndAtOnce` in place of its :class:`~isolate.sandbox.defaults.Launch`.

    :raises SetupError: what cannot be done, with cause and remedy.
    """
    try:
        result = box.run(["check"], stdout=DEVNULL, stderr=DEVNULL)
    except SetupError as error:
        if error.syscall != "execve" or error.errno != errno.EFAULT:
            raise
    else:
        raise SetupError(
            errno.EPERM,
            _EXECUTE,
            part="Seccomp" if result.verdict is Verdict.SECCOMP else "Sandbox",
            syscall="execve",
            cause="the sandbox's own filter kills execve: no program can run in it"
            if result.verdict is Verdict.SECCOMP
            else f"the process that would have become the program ended with {result.verdict} ({result.returncode})",
            remedy="allow execve in the policy" if result.verdict is Verdict.SECCOMP else None,
        )
