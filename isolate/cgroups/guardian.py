"""A keeper that removes groups when its owner ends in any way, SIGKILL included; or only ends with it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.engine.keeper import until_owner_ends
from isolate.engine.plan import Phase, RemoveTree, Step
from isolate.kernel.constants import AT_FDCWD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context
    from isolate.engine.session import Session


@dataclass(frozen=True)
class Guardian:
    """The only part of the guardian's plan."""

    directories: tuple[str, ...]

    def steps(self, context: Context) -> Iterator[Step]:
        """Wait; then kill what is in the groups, and remove them."""
        yield until_owner_ends()
        gone = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)
        for directory in self.directories:
            remove = RemoveTree(AT_FDCWD, os.fsencode(directory), errors=gone, everybody=True)
            yield Step(Phase.CLEANUP, f"kill what is in {directory}, and remove it", (remove,))


def watch(directories: list[str]) -> Session:
    """Start a guardian for directories, which need not be there yet. Closing the session has them removed, too.

    For none it does nothing but end when its owner does: what keeps a scope (:mod:`isolate.cgroups.scope`).
    """
    from isolate.diagnosis.start import keep  # loaded late: a sandbox that is only made starts nothing

    return keep(Guardian(tuple(directories)))
