"""``UserNamespace``: ids and capabilities of its own, and the maps that say which ids of the host they are."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isolate.engine.finding import Finding
from isolate.engine.plan import (
    BOTH,
    CALLERS_PROC,
    CHILD,
    KEPT,
    Buffer,
    Context,
    Label,
    Op,
    Phase,
    Register,
    RunHost,
    Split,
    Step,
    Store,
    call,
)
from isolate.errors import ConflictError
from isolate.kernel.checks import keywords
from isolate.kernel.constants import (
    AT_FDCWD,
    O_CLOEXEC,
    O_PATH,
    O_WRONLY,
    Constant,
)
from isolate.kernel.namespaces import by_word
from isolate.namespaces import quotas
from isolate.namespaces.base import Namespace
from isolate.namespaces.ids import IdMap, IdRange, check_id, mapped
from isolate.namespaces.quotas import write_file
from isolate.thread.entering import Irreversible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from isolate.diagnosis.host import Failure


__all__ = ["UserNamespace"]


@keywords
@dataclass(frozen=True, kw_only=True)
class UserNamespace(Namespace, Irreversible):
    """A user namespace: ids and capabilities of its own (user_namespaces(7)).

    Inside, ``uid`` and ``gid`` are the caller's ids by default; or an explicit :class:`~isolate.IdMap` says more. Needs
    no privileges where the host allows unprivileged user namespaces. ``setgroups`` allows setgroups(2) inside, which an
    unprivileged caller cannot have (the kernel wants it denied). ``nested`` allows further user namespaces inside.

    Objects that are used inside count against the caller's quotas, too. So the kernel's limits of this namespace are
    set: to at most a quarter of the caller's for inotify instances and watches, for fanotify groups and marks, and for
    namespaces if any can be made inside. ``quotas`` gives other numbers, by the names in /proc/sys/user without
    ``max_``: ``{"inotify_instances": 16}``. If /proc/sys cannot be written (in a container), a quota that is given by
    name is an error; the others are left out, and ``Result.applied`` tells.

    The namespace of a root caller belongs to an unused uid of the host (4294967293), not to root. The reason is that
    a process outside with the owner's uid has all capabilities over the namespace, even a program of uid 0 that was
    given none. This needs CAP_SYS_PTRACE, CAP_SETUID and CAP_SETFCAP in the caller, and a user namespace of the
    caller's that maps that uid.

    Only root, or a caller with CAP_DAC_OVERRIDE, may write the id maps of a process that cannot be traced. For other
    callers the set-up can be traced by the caller's own processes until the maps are written. Together with a
    :class:`PidNamespace` that is joined, in which others may live, that is an error instead (EACCES).

    No process can leave a user namespace again.

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.
    :param uid: the caller's user id inside.
    :param gid: the caller's group id inside.
    :param map: more ids than one: an :class:`~isolate.IdMap`.
    :param setgroups: allow setgroups(2) inside.
    :param nested: allow further user namespaces inside.
    :param quotas: limits of what is counted for a user, by names of /proc/sys/user.

    >>> Sandbox(UserNamespace(uid=1000, gid=1000)).run(["id", "-u"]).stdout
    b'1000\\n'
    """

    uid: int = 0
    gid: int = 0
    map: IdMap | None = None
    setgroups: bool | None = None
    nested: bool = False
    quotas: Mapping[str, int] | tuple[tuple[str, int], ...] | None = None

    kind: ClassVar[str] = "user"
    flag: ClassVar[Constant] = by_word("user").flag

    def __post_init__(self) -> None:
        super().__post_init__()
        check_id(self.uid, "uid")
        check_id(self.gid, "gid")
        object.__setattr__(self, "quotas", quotas.checked(self.quotas))
        if self.joined and self.quotas:
            raise ConflictError("UserNamespace: one that is joined has its quotas already")
        if self.joined and self.map is not None:
            raise ConflictError("UserNamespace: one that is joined has its map already")
        if self.map is not None and not (mapped(self.map.uids, self.uid) and mapped(self.map.gids, self.gid)):
            raise ConflictError(f"UserNamespace: uid {self.uid} or gid {self.gid} is not in the map {self.map}")

    def ids(self, context: Context) -> IdMap:
        """The map in force."""
        return self.map or IdMap([IdRange(self.uid, context.euid)], [IdRange(self.gid, context.egid)])

    def allows_setgroups(self, context: Context) -> bool:
        """Whether groups can be changed inside."""
        if self.joined:
            return True
        if self.setgroups is None:
            own = context.privileged and not _setgroups_denied()
            return own or (self.map is not None and self.map.helpers)
        return self.setgroups

    def steps(self, context: Context) -> Iterator[Step]:
        """The flag, the maps (written from outside), the identity."""
        if self.joined:
            yield self._join(context, Phase.JOIN_USER_LAST if context.privileged else Phase.JOIN_USER)
            return
        yield from super().steps(context)
        ids = self.ids(context)
        if self.setgroups and not context.privileged and not (self.map and self.map.helpers):
            raise ConflictError(
                "UserNamespace: an unprivileged caller's map needs setgroups denied (user_namespaces(7))"
            )
        yield from self._maps(context, ids)
        yield from self._identity(context, ids)
        if not self.nested:
            yield _forbid_nested(_filtered(context))
        yield from quotas.steps(dict(self.quotas or ()), context, nested=self.nested)

    def _maps(self, context: Context, ids: IdMap) -> Iterator[Step]:
        hints = {
            errno.EACCES: _JOINED_PIDS if context.executes else _NOT_DUMPABLE,
            errno.EPERM: Finding(
                "the kernel refuses this id map: without CAP_SETUID and CAP_SETGID only the caller's own uid and gid"
                " can be mapped",
                "map the own ids alone (UserNamespace()), or a range of /etc/subuid (IdMap.subordinate())",
                ask=_why_refused,
            ),
            errno.EINVAL: Finding(
                "the map is not one that the kernel takes: more than the caller's own id, or ids that the caller does"
                " not have",
                "map ids that this user namespace has (/proc/self/uid_map)",
            ),
        }
        # From a tree that is made once root goes on outside, and anybody else is inside of the user namespace that owns
        # the tree: a map into that, where there are the same ids.
        last = None if context.privileged else _nested_maps(ids, setgroups=self.allows_setgroups(context))
        split = BOTH if last is None else KEPT
        pid = Buffer(b"/proc/" + bytes(21), "proc")
        directory = Register("proc")
        opening: list[Op] = [
            Store(pid, 6, CHILD, 0),
            call("openat", AT_FDCWD, pid, O_PATH | O_CLOEXEC, 0, out=directory),
        ]
        if ids.helpers:
            number = Buffer(21, "pid")
            lists = [(b"newuidmap", ids.uids), (b"newgidmap", ids.gids)]
            for program, ranges in lists:
                arguments = [word.encode() for r in ranges for word in str(r).split()]
                text = f"map ids with {program.decode()}: {', '.join(map(str, ranges))}"
                yield Step(
                    Phase.ID_MAPS,
                    text,
                    (Store(number, 0, CHILD, 0), RunHost(b"/usr/bin/" + program, (program, number, *arguments))),
                    path=b"/usr/bin/" + program,
                    template=last if last is not None and program == b"newgidmap" else split,
                    hints=_HELPER,
                )
            return
        if not self.allows_setgroups(context):
            # Before gid_map: the kernel wants it so from whoever has no CAP_SETGID (since 3.19, CVE-2014-8989).
            yield Step(
                Phase.ID_MAPS,
                "deny setgroups inside",
                (*opening, *write_file(directory, b"setgroups", b"deny")),
                hints=hints,
                template=split,
            )
            opening = []
        for name, ranges in ((b"gid_map", ids.gids), (b"uid_map", ids.uids)):
            data = "".join(f"{r}\n" for r in ranges).encode()
            yield Step(
                Phase.ID_MAPS,
                f"{name.decode()}: "
                + ", ".join(
                    f"{r.inside} is {r.outside}" + (f" (+{r.count - 1})" if r.count > 1 else "") for r in ranges
                ),
                (*opening, *write_file(directory, name, data)),
                hints=hints,
                template=split,
            )
            opening = []
        split = last if last is not None else BOTH
        yield Step(Phase.ID_MAPS, "let go of the child's /proc", (call("close", directory),), template=split)

    def _identity(self, context: Context, ids: IdMap) -> Iterator[Step]:
        uid = 0 if mapped(ids.uids, 0) else self.uid
        gid = 0 if mapped(ids.gids, 0) else self.gid
        ops: list[Op] = []
        if self.allows_setgroups(context):
            # The caller's groups are the host's; nobody inside should act by them.
            ops.append(call("setgroups", 0, 0))
        ops += [call("setresgid", gid, gid, gid), call("setresuid", uid, uid, uid)]
        yield Step(Phase.IDENTITY, f"be uid {uid}, gid {gid} inside", tuple(ops), template=BOTH)


_JOINED_PIDS = Finding(
    "the set-up of a sandbox in a pid namespace that is joined cannot be traced, and its id maps are root's to write",
    "run as root (or with CAP_DAC_OVERRIDE), or join the user namespace too (attach(pid).sandbox())",
)
_NOT_DUMPABLE = Finding(
    "this process is not dumpable, so its files in /proc are root's: it changed its ids since exec",
    "enter it before, or in a program that is executed with these ids",
)


def _why_refused(failure: Failure) -> Finding | None:
    from isolate.namespaces.refused import map_refused  # loaded late: only an error needs it

    return map_refused(failure)


def _why_no_help(failure: Failure) -> Finding | None:
    from isolate.namespaces.refused import helper  # loaded late: only an error needs it

    return helper(failure)


_HELPER = {
    errno.ENOENT: Finding("newuidmap and newgidmap are not installed", "install them (uidmap)", ask=_why_no_help),
    errno.ECHILD: Finding("it refused: the ranges are not in /etc/subuid and /etc/subgid", ask=_why_no_help),
}


def _nested_maps(ids: IdMap, *, setgroups: bool) -> Split:
    """At a start from a tree that is made once: the maps of a user namespace within the one that owns the tree."""
    number, directory = Buffer(21, "pid"), Register("proc")
    ops: list[Op] = [
        Store(number, 0, CHILD, 0),
        call("openat", CALLERS_PROC, number, O_PATH | O_CLOEXEC, 0, out=directory),
        *([] if setgroups else write_file(directory, b"setgroups", b"deny")),
    ]
    for name, ranges in ((b"gid_map", ids.gids), (b"uid_map", ids.uids)):
        data = "".join(f"{r.inside} {r.inside} {r.count}\n" for r in ranges).encode()
        ops += write_file(directory, name, data)
    return Split(build=None, again=(*ops, call("close", directory)))


def _setgroups_denied() -> bool:
    """Whether the caller's own user namespace has setgroups denied, which those inside of it inherit."""
    try:
        with open("/proc/self/setgroups", encoding="ascii") as file:
            return file.read().strip() == "deny"
    except OSError:
        return False


def _filtered(context: Context) -> bool:
    """Whether a filter of the sandbox's refuses user namespaces, and so says what the limit would say once more."""
    asked = (getattr(part, "refuses_user_namespaces", None) for part in context.parts)
    return context.executes and any(refuses is not None and refuses() for refuses in asked)


_OTHERWISE = "say UserNamespace(nested=True), or add a filter that refuses user namespaces, as Seccomp.default() does"


def _forbid_nested(filtered: bool) -> Step:
    fd, done = Register("sysctl"), Label()
    # In a container, /proc/sys is read-only or missing.
    unwritable = (errno.EROFS, errno.ENOENT, errno.EACCES) if filtered else ()
    return Step(
        Phase.SYSTEM,
        "no user namespaces inside this one (user.max_user_namespaces = 0)"
        + (" (where it can be written: the filter refuses them as well)" if filtered else ""),
        (
            call(
                "openat",
                AT_FDCWD,
                b"/proc/sys/user/max_user_namespaces",
                O_WRONLY | O_CLOEXEC,
                0,
                out=fd,
                errors=unwritable,
                policy="skip",
                label=done if filtered else None,
            ),
            call("write", fd, b"0", 1, expect=1),
            call("close", fd),
            done,
        ),
        path=b"/proc/sys/user/max_user_namespaces",
        hints={
            errno.EROFS: Finding("/proc/sys is read-only here (a container)", _OTHERWISE),
            errno.ENOENT: Finding("/proc is not mounted here", _OTHERWISE),
        },
    )
