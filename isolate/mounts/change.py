"""A single mount on a path, in the calling thread's mount namespace, and gone after (move_mount(2), umount2(2))."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, cast

from isolate.engine.finding import Finding
from isolate.engine.plan import Buffer, Call, Phase, Register, Step, Store, call
from isolate.kernel.constants import AT_FDCWD, MNT_DETACH, O_CLOEXEC, O_PATH
from isolate.mounts.building import Building
from isolate.mounts.calls import move
from isolate.namespaces.change import CLONE_FS
from isolate.thread.program import Program, Running, StepsChange, here

if TYPE_CHECKING:
    from isolate.engine.plan import Part, Row
    from isolate.mounts.building import TreeEntry

__all__ = ["MountChange"]

_SOURCES = (Phase.TREES, Phase.SOURCES, Phase.ROOT)  # the others are for a launcher that stands between


class MountChange(StepsChange):
    """The mount as it would be in a root, moved to its target; taken away by its own descriptor, busy or not."""

    __slots__ = ("_entry",)

    order = 20

    def __init__(self, entry: TreeEntry) -> None:
        super().__init__()
        self._entry = entry

    @property
    def text(self) -> str:  # type: ignore[override]
        """Which mount."""
        return f"the mount on {os.fsdecode(self._entry.place)}"

    def apply(self) -> None:
        """Make it, attach it."""
        program, moves = _program(self._entry)
        self._running = Running(program)
        if moves:
            from isolate.thread.disposable import on_a_thread

            on_a_thread(self._running.apply)
        else:
            self._running.apply()

    def now(self) -> str:
        """Whether something is mounted there."""
        place = self._entry.place
        return f"{'something is' if os.path.ismount(place) else 'nothing is'} mounted on {os.fsdecode(place)}"


def _program(entry: TreeEntry) -> tuple[Program, bool]:
    part = cast("Part", entry)  # for the name in errors
    building = Building(here())
    tree, steps = entry.tree(building)
    rows: list[Row] = [(step, part) for step in steps if step.phase in _SOURCES]
    # Steps that change the working directory run on a thread with one of its own: this one's is all threads'.
    moves = any(isinstance(op, Call) and op.name == "fchdir" for step, _ in rows for op in step.ops)
    if moves:
        rows.insert(0, (Step(Phase.SOURCES, "a working directory of its own", (call("unshare", CLONE_FS),)), part))
    place, moved = Register("place"), Register("moved")
    target = entry.place
    moving = move(tree, place)
    moving.out = moved  # type: ignore[union-attr]
    rows.append(
        (
            Step(
                Phase.ROOT,
                f"mount it on {os.fsdecode(target)}",
                (call("openat", AT_FDCWD, target, O_PATH | O_CLOEXEC, 0, out=place), moving, call("close", place)),
                path=target,
                needs=tree,
                hints={
                    errno.ENOENT: Finding("the target does not exist: in place it is not made", "make it before"),
                    errno.ENOTDIR: Finding(
                        "a file is mounted on a file, a directory on a directory", "name a target of the same kind"
                    ),
                    errno.EINVAL: "what is there cannot be mounted on: it lies in another mount namespace",
                    errno.EPERM: Finding(
                        "mounting needs CAP_SYS_ADMIN in the mount namespace's user namespace",
                        "enter UserNamespace() and MountNamespace() first, or run as root",
                    ),
                },
            ),
            part,
        )
    )
    name = Buffer(b"/proc/thread-self/fd/" + bytes(21), "name")
    undo = Step(
        Phase.AFTER,
        f"unmount {os.fsdecode(target)}",
        (Store(name, 21, tree, 0), call("umount2", name, MNT_DETACH)),
        needs=moved,
        path=target,
        hints={errno.EINVAL: "it is not mounted any more, or this thread is in another mount namespace"},
    )
    close = Step(Phase.CLEANUP, "close the mount", (call("close", tree),), needs=tree)
    return Program(part, rows, [undo], [close]), moves
