"""Acting on a container's files as the container's user would, with none of the caller's rights over them."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from isolate.attributes.credentials import Credentials
from isolate.engine import native
from isolate.errors import SetupError
from isolate.kernel.syscalls import number
from isolate.namespaces.ids import outside
from isolate.namespaces.part import UserNamespace
from isolate.thread.disposable import on_a_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolate.engine.plan import Context

__all__ = ["Actor", "actor_of"]

T = TypeVar("T")


@dataclass(frozen=True)
class Actor:
    """Whose rights hold: the host's ids of the container's user; None: the caller's own, who is that user."""

    ids: tuple[int, int] | None

    def call(self, function: Callable[[], T]) -> T:
        """Call it on a thread that can become the container's user."""
        if self.ids is None:
            return function()

        def body() -> T:
            # Only for this thread, which ends soon: the caller's groups give no right to anything inside.
            if native.call(number("setgroups"), 0, 0) < 0:
                raise self._refused()
            return function()

        return on_a_thread(body)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """The container's user for all that concerns files (setfsuid(2)): root's rights over them are put aside."""
        if self.ids is None:
            yield
            return
        uid, gid = self.ids
        for call, wanted in (("setfsgid", gid), ("setfsuid", uid)):
            native.call(number(call), wanted)
            if native.call(number(call), -1) != wanted:  # it tells no error, only what was before
                self._back()
                raise self._refused()
        try:
            yield
        finally:
            self._back()

    @staticmethod
    def _back() -> None:
        native.call(number("setfsuid"), 0)
        native.call(number("setfsgid"), 0)

    @staticmethod
    def _refused() -> SetupError:
        return SetupError(
            errno.EPERM,
            "act as the container's user",
            part="Container",
            syscall="setfsuid",
            cause="this process is root without CAP_SETUID or CAP_SETGID",
            remedy="keep both for this program (Docker, Podman: --cap-add), or run it as an ordinary user",
        )


def actor_of(context: Context) -> Actor:
    """The ids of a container's programs on the host, for its files.

    :raises SetupError: that is not known: its user namespace was joined.
    """
    if not context.privileged:
        return Actor(None)
    user, credentials = context.find(UserNamespace), context.find(Credentials)
    uid = gid = None
    if credentials is not None:
        uid, gid = credentials.uid, credentials.gid
    if user is None:
        return Actor((0 if uid is None else uid, 0 if gid is None else gid))
    if user.joined:
        raise SetupError(
            errno.EOPNOTSUPP,
            "act as the container's user",
            part="Container",
            cause="its user namespace is another's, so the ids on the host are not known",
        )
    ids = user.ids(context)
    found = outside(ids.uids, user.uid if uid is None else uid), outside(ids.gids, user.gid if gid is None else gid)
    if min(found) < 0:
        raise SetupError(
            errno.EOVERFLOW, "act as the container's user", part="Container", cause="its ids have none on the host"
        )
    return Actor(found)
