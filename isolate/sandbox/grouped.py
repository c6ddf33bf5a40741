"""The use of resources, and freezing: the verbs of a :class:`~isolate.Process` about its cgroup."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolate.cgroups.stats import Stats
    from isolate.engine.session import Session
    from isolate.network.link import Counters

__all__ = ["Grouped", "moved"]


def moved(session: Session | None, more: Iterable[Any] = (), *, strict: bool = False) -> dict[str, Counters]:
    """The traffic of each interface of a sandbox, by its device, and ``more`` that tell; ``strict``: one that has gone
    is an error."""
    found: dict[str, Counters] = {}
    held = session.held if session is not None else ()
    for each in [*(kept for one in held for kept in getattr(one, "kept", ())), *more]:
        if hasattr(each, "counters"):
            try:
                device, counters = each.counters()
            except (OSError, ValueError):  # the device has gone, or its network is closed
                if strict:
                    raise
                continue
            found[device] = counters
    return found


class Grouped:
    """An object with a session, whose sandbox may have a cgroup and devices of its own."""

    _session: Session

    def _group(self) -> dict[str, str]:
        group = self._session.tape.plan.context.group
        if group is None:
            raise ValueError("the sandbox has no cgroup of its own: add Limits() to it")
        return group.directories(self._session)

    def stats(self) -> Stats:
        """The use of everything inside so far. Needs ``Limits`` in the sandbox, ``Limits()`` at least."""
        from isolate.cgroups.ending import read_stats

        return replace(read_stats(self._group()), interfaces=moved(self._session))

    def interfaces(self) -> dict[str, Counters]:
        """The traffic of each :class:`isolate.network.Interface` of the sandbox so far, by its device.

        :raises SetupError: ENODEV: the program has ended, and the device with it.
        """
        return moved(self._session, strict=True)

    def freeze(self, timeout: float = 10.0) -> None:
        """Stop everything inside, and return when all has stopped. A timeout of :meth:`wait` goes on counting.

        :raises TimeoutError: not everything has stopped within ``timeout`` seconds.
        """
        from isolate.cgroups.ending import freeze_groups

        freeze_groups(self._group(), True, timeout)

    def thaw(self, timeout: float = 10.0) -> None:
        """Let it go on."""
        from isolate.cgroups.ending import freeze_groups

        freeze_groups(self._group(), False, timeout)
