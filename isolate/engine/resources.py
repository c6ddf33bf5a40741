"""Objects outside of a sandbox that belong to each of its starts, such as a place in a network or a ready cgroup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.engine.ops import Buffer

__all__ = ["Counted", "Ground", "Guide", "Held", "Launched", "Moved", "Resource"]


class Launched(Protocol):
    """A launcher that runs, as a resource sees it; ``isolate.engine.session.Session`` is one."""

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        ...

    @property
    def pidfd(self) -> int:
        """The launcher's pidfd."""
        ...

    def adopt(self, pidfd: int, pid: int) -> None:
        """Take the program's pidfd, which init has handed over."""
        ...

    def go(self) -> None:
        """Send the byte that a step of the plan waits for."""
        ...

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Wait until the launcher has gone, for so many seconds at most."""
        ...

    def given_by(self, resource: object) -> Held | None:
        """The object that a resource has given to this start; None once it is closed."""
        ...


class Held(Protocol):
    """The object that a resource gives to one start: descriptors for its slots. Closed with the start's session.

    One with a method ``ended`` is called as soon as the launcher has told that all in the sandbox has ended, and before
    it is closed.
    """

    @property
    def fds(self) -> Sequence[int]:
        """The descriptors, in the order of the slots."""
        ...

    def started(self, session: Launched) -> None:
        """The launcher runs, and has its own copies of the descriptors.

        :raises SetupError: the sandbox cannot be had; it is taken down.
        """
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class Resource(Protocol):
    """Something that each start gets of its own. A part asks for any number of them by :meth:`Context.resource`."""

    def take(self) -> Held:
        """For one start."""
        ...


class Counted(Protocol):
    """The cgroup of each run of a plan, for the verbs: where it is, what it counts, and that it goes."""

    @property
    def counts(self) -> bool:
        """Whether it counts CPU time."""
        ...

    def directories(self, session: Launched) -> dict[str, str]:
        """Its directory in each hierarchy, for a run that goes on."""
        ...

    def usage(self, session: Launched) -> float | None:
        """Seconds of CPU time so far; None where nothing counts it."""
        ...

    def outcome(self, report: bytes, reports: Sequence[tuple[Buffer, int, int]]) -> Any:
        """The counters from the launcher's last record (``Record.report``, ``Tape.reports``)."""
        ...

    def remove(self, session: Launched) -> None:
        """Remove what a launcher that was killed has left."""
        ...

    def remove_left(self) -> None:
        """Remove what was made ahead of a start, where all that would have removed it were killed."""
        ...

    def remove_abandoned(self) -> None:
        """The same for other programs that were killed, where nothing is in it."""
        ...


class Ground(Protocol):
    """An object that a plan depends on, such as a scope of systemd's: made before the plan, for all its starts."""

    def ready(self) -> bool:
        """Whether it is there, as it was when the plan was made."""
        ...

    def make(self) -> None:
        """Make it; the plan is then made again."""
        ...


class Guide(Protocol):
    """An object that moves each launcher to a place where its steps can be done."""

    def move(self, pid: int) -> None:
        """Called when the launcher runs; a step of its waits for the byte that is sent to it afterwards."""
        ...


class Moved:
    """The resource of a guide: the launcher is moved, and then told to go on. It has no descriptors."""

    fds: tuple[int, ...] = ()

    def __init__(self, guide: Guide) -> None:
        self.guide: Guide = guide

    def take(self) -> Moved:
        """Nothing of it belongs to one start."""
        return self

    def started(self, session: Launched) -> None:
        """Have the launcher moved, and tell it: it waits for a byte on its socket."""
        try:
            self.guide.move(session.pid)
        except OSError:
            if session.wait_gone(0):
                return  # an earlier step failed, which is why nobody was there to be moved: its record says so
            raise
        session.go()

    def close(self) -> None:
        """Nothing is held."""
