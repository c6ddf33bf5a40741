"""The scope of this program: a delegated group that systemd makes for it, with a process of ours in it, not this one.

Where this program may make no group by itself and systemd runs, systemd is asked for a transient scope with
Delegate=yes, once for each program and when something is to start. A unit needs a process: ours is the launcher with a
tape that only waits (:mod:`isolate.cgroups.guardian`). It holds a pidfd of this program and nothing else of its, and
ends with it, SIGKILL included; so the scope goes, too. It stands in a leaf, since a group with processes passes no
controllers on.

Whoever clones into a group needs the right to write cgroup.procs of the common ancestor (cgroup-v2.rst, "Delegation
Containment"). Below ``user@UID.service`` a user has it. From a login's session scope he has not, so there each launcher
is moved into the leaf by systemd before it makes its group: :meth:`Scope.move`.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolate.cgroups import files, naming
from isolate.cgroups.hierarchy import build, discover, read
from isolate.cgroups.systemd import Manager
from isolate.engine import native
from isolate.errors import SetupError, UnsupportedError

if TYPE_CHECKING:
    from isolate.cgroups.hierarchy import Hierarchy
    from isolate.engine.session import Session

#: The tag of the leaf that our process stands in.
_LEAF: Final = "self"
#: Stands for the directory of a scope that is not there yet.
FUTURE: Final = "<scope>"


class Scope:
    """The scope of one program under one effective uid. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._holder: Session | None = None
        #: For what is asked at each start; opened when it is first needed.
        self._manager: Manager | None = None
        self._name = ""
        self._directory = ""

    def directory(self) -> str:
        """The directory in which groups can be made; "" before the scope is made, and after it has gone."""
        holder, directory = self._holder, self._directory
        # Our process keeps the scope, and a scope that is stopped takes our process along.
        return directory if holder is not None and not holder.wait_gone(0) else ""

    def make(self) -> str:
        """Have systemd make it, unless it is there; its directory.

        :raises SetupError: systemd cannot be asked, or refuses. Nothing is left then.
        """
        from isolate.cgroups.guardian import watch

        with self._lock:
            found = self.directory()
            if found:
                return found
            self._forget()
            v2 = discover().v2
            name = f"run-{naming.prefix()}s{next(self._numbers)}.scope"
            holder = watch([])
            try:
                with Manager() as manager:
                    manager.start_scope(name, [holder.pid], _slice(v2.own if v2 is not None else ""))
                directory = _group_of(holder.pid)
                if not directory.endswith(f"/{name}"):
                    raise UnsupportedError(
                        errno.EPROTO,
                        "find the scope that systemd made",
                        part="Cgroup",
                        cause=f"{name} is not seen here: its process is in {directory or 'no group of this mount'}",
                    )
                _settle(directory, holder.pid)
            except BaseException:
                holder.kill()
                holder.wait_gone(1.0)
                holder.close()
                raise
            self._holder, self._name, self._directory = holder, name, directory
            return directory

    def _forget(self) -> None:
        holder, self._holder = self._holder, None
        manager, self._manager = self._manager, None
        if holder is not None:
            holder.close()
        if manager is not None:
            manager.close()

    def move(self, pid: int) -> None:
        """Have systemd move a process of this user's into the leaf.

        :raises UnsupportedError: systemd does not, with its words.
        """
        self.attach(self._leaf(), pid)

    def attach(self, directory: str, pid: int) -> None:
        """Have systemd move a process of this user's into a group of the scope's."""
        below = directory.removeprefix(self._directory) or "/"
        with self._lock:
            fresh = self._manager is None
            try:
                self._ask(below, pid)
            except SetupError:
                raise
            except (OSError, EOFError) as error:
                # The bus ended the connection, which may be days old.
                if fresh:
                    raise _ended(error) from None
                try:
                    self._ask(below, pid)
                except (OSError, EOFError) as again:
                    raise again if isinstance(again, SetupError) else _ended(again) from None

    def _ask(self, below: str, pid: int) -> None:
        if self._manager is None:
            self._manager = Manager()
        try:
            self._manager.attach(self._name, below, pid)
        except BaseException as error:
            if not isinstance(error, SetupError) or error.errno == errno.ETIMEDOUT:
                # Also at a KeyboardInterrupt: an answer that was not read must not be taken for the next one's.
                manager, self._manager = self._manager, None
                manager.close()
            raise

    def _leaf(self) -> str:
        return os.path.join(self._directory, naming.prefix() + _LEAF)


def _ended(error: OSError | EOFError) -> SetupError:
    return UnsupportedError(
        getattr(error, "errno", None) or errno.ECONNRESET,
        "have systemd move a process into the scope",
        part="Cgroup",
        cause=f"D-Bus ended the connection: {error}",
    )


def _group_of(pid: int) -> str:
    """The directory of a process's v2 group, "" where it is not seen."""
    v2 = build(read("/proc/self/mountinfo"), read(f"/proc/{pid}/cgroup")).v2
    return v2.own if v2 is not None else ""


def _settle(directory: str, pid: int) -> None:
    """Our process into a leaf: the group above can pass controllers on then."""
    leaf = os.path.join(directory, naming.prefix() + _LEAF)
    files.make(leaf, step="make a leaf in the scope", part="Cgroup")
    files.write(leaf, "cgroup.procs", str(pid).encode(), step="move our process into the scope's leaf")


def _slice(own: str) -> str:
    """The slice to ask for: the caller's, where it is one of the manager that is asked. "" for the manager's choice."""
    pieces = own.split("/")
    if os.geteuid() != 0:
        manager = f"user@{os.geteuid()}.service"
        if manager not in pieces:
            return ""
        pieces = pieces[pieces.index(manager) + 1 :]
    return next((p for p in reversed(pieces) if p.endswith(".slice")), "")


#: By process and effective uid: a forked child, which inherits this, is another process and gets a scope of its own.
_scopes: Final[dict[tuple[int, int], Scope]] = {}


def mine() -> Scope:
    """The scope of this process, made or not."""
    return _scopes.setdefault((native.owner(), os.geteuid()), Scope())


@dataclass(frozen=True)
class Standing:
    """The ground of a plan: the scope in this directory; "": one that is asked for when something starts."""

    directory: str

    def ready(self) -> bool:
        """Whether a plan that was made for it still fits."""
        return bool(self.directory) and mine().directory() == self.directory

    def make(self) -> None:
        """Ask systemd for it."""
        mine().make()


def guide_to(directory: str) -> Scope | None:
    """The mover of a launcher that cannot clone into that group by itself; None if it can."""
    scope = mine()
    top = scope.directory()
    if not top or os.path.commonpath([top, directory]) != top:
        return None
    v2 = discover().v2
    if v2 is None or not v2.own:
        return scope
    door = os.path.join(os.path.commonpath([v2.own, directory]), "cgroup.procs")
    return None if os.access(door, os.W_OK, effective_ids=True) else scope


def expected(hierarchy: Hierarchy) -> frozenset[str] | None:
    """The controllers that a scope will have to pass on, as far as can be told before; None: cannot be told."""
    manager = os.path.join(hierarchy.mount, "user.slice", f"user-{os.geteuid()}.slice", f"user@{os.geteuid()}.service")
    top = hierarchy.mount if os.geteuid() == 0 else manager
    file = os.path.join(top, "cgroup.controllers")
    return frozenset(read(file).split()) if os.path.exists(file) else None
