"""The identity of the program: user id, group id, supplementary groups, umask."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding
from isolate.engine.plan import Buffer, Fail, Jump, Label, Load, Op, Phase, Register, Step, Store, Test, call
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.constants import LINUX_CAPABILITY_VERSION_3
from isolate.thread.entering import Reversible

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from isolate.engine.plan import Argument, Context
    from isolate.thread.change import Change

__all__ = ["Credentials"]

_MAX_ID = 2**32 - 2  # (uid_t) -1 means "leave it" to the system calls
_NGROUPS_MAX = 65536
_CAP_SETGID = 6


def _check_id(what: str, value: object) -> None:
    if not is_int(value):
        hint = " (names are not looked up: inside they may mean another id)" if isinstance(value, (str, bytes)) else ""
        raise TypeError(f"Credentials: {what} must be an int, not {value!r}{hint}")
    if not 0 <= value <= _MAX_ID:
        raise ValueError(f"Credentials: {what} must be in 0 … {_MAX_ID}, not {value}")


@keywords
@dataclass(frozen=True)
class Credentials(Reversible):
    """The ids that the program runs with: real, effective and saved alike.

    ``uid`` and ``gid``
        Ints, as seen inside the user namespace. None is what the sandbox's :class:`~isolate.UserNamespace` says, or
        without one the effective id of the caller.
    ``groups``
        The supplementary groups: none by default. None keeps those there are.
    ``umask``
        The mask of file modes, 0 … 0o777.

    Groups go first, then the gid, then the uid: each needs what the next gives up. Everything is read back before the
    program starts. Raising ids needs CAP_SETUID and CAP_SETGID, which init has in a new user namespace.

    In a user namespace whose ``setgroups`` file says ``deny`` (every one-id map written without privileges) the kernel
    lets nobody change supplementary groups. Only there, ``groups=()`` is taken for "cannot be dropped": the host's
    groups stay, invisible and still good for access. Use a range map (``newgidmap``) to be rid of them. An ordinary
    user without a user namespace gets an error if there are groups to drop: ``groups=None`` accepts them. A list that
    holds the program's own gid alone (every login has it there) gives no access that the gid does not, and is none.

    Errors: EINVAL for an id that the user namespace does not map; EPERM without the capability.
    Source: setresuid(2), setgroups(2), credentials(7), user_namespaces(7).

    :param uid: user id inside; None leaves it.
    :param gid: group id inside; None leaves it.
    :param groups: supplementary groups; None leaves the caller's.
    :param umask: permission bits that new files do not get, 0 to 0o777.

    >>> Sandbox(UserNamespace(), Credentials(umask=0o077)).run(["sh", "-c", "umask"]).stdout
    b'0077\\n'
    """

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = ()
    umask: int = 0o022

    def __post_init__(self) -> None:
        for what, value in (("uid", self.uid), ("gid", self.gid)):
            if value is not None:
                _check_id(what, value)
        if self.groups is not None:
            if isinstance(self.groups, (str, bytes, int)):
                raise TypeError(f"Credentials: groups must be a sequence of ints, not {self.groups!r}")
            object.__setattr__(self, "groups", tuple(self.groups))
            for group in self.groups:
                _check_id("a group", group)
            if len(self.groups) > _NGROUPS_MAX:
                raise ValueError(f"Credentials: at most {_NGROUPS_MAX} groups, not {len(self.groups)}")
        if not is_int(self.umask):
            raise TypeError(f"Credentials: umask must be an int such as 0o022, not {self.umask!r}")
        if not 0 <= self.umask <= 0o777:
            raise ValueError(f"Credentials: umask must be in 0 … 0o777, not {self.umask:#o}")

    def here(self) -> Change:
        """``with``: the effective ids and the groups of this thread, and the umask, which is the whole process's."""
        from isolate.attributes.credentials_change import CredentialsChange

        return CredentialsChange(self.uid, self.gid, self.groups, self.umask)

    def steps(self, context: Context) -> Iterator[Step]:
        """Groups, gid, uid, umask; then all of it read back."""
        user = context.namespace("user")
        uid_wanted, gid_wanted, deniable = self.uid, self.gid, True
        if user is None:
            deniable = not context.privileged or _setgroups_denied()
        elif not user.joined:
            # init is root where the map has root; the program is whom the namespace was asked for.
            uid_wanted = user.uid if uid_wanted is None else uid_wanted
            gid_wanted = user.gid if gid_wanted is None else gid_wanted
            deniable = not user.allows_setgroups(context)
        kept = Buffer(4, "kept")  # 1 once the kernel has refused to let the groups go
        if self.groups is not None:
            yield self._set_groups(kept, deniable, gid_wanted)
        gid = yield from self._set("gid", gid_wanted)
        uid = yield from self._set("uid", uid_wanted)
        yield Step(Phase.CREDENTIALS, f"umask {self.umask:03o}", (call("umask", self.umask),))
        yield from self._verify(uid, gid, kept)

    def _set_groups(self, kept: Buffer, deniable: bool, gid: int | None) -> Step:
        groups = sorted(set(self.groups or ()))
        table: Argument = Buffer(struct.pack(f"<{len(groups)}I", *groups), "groups") if groups else 0
        text = "drop the supplementary groups" if not groups else f"supplementary groups {', '.join(map(str, groups))}"
        denied, done, bare = Label(), Label(), Label()
        header = Buffer(struct.pack("<II", LINUX_CAPABILITY_VERSION_3, 0), "header")
        held = Buffer(24, "held")
        ops: list[Op] = [
            call("setgroups", len(groups), table, errors=(errno.EPERM,), policy="jump", label=denied),
            Jump(done),
            denied,
        ]
        if not groups and deniable:
            # With CAP_SETGID in hand, EPERM means that this user namespace denies setgroups to everybody: nothing
            # can drop the groups.
            ops += [
                call("capget", header, held),
                Test(Load(held, 0, 4), 1 << _CAP_SETGID, mask=1 << _CAP_SETGID, label=bare),
                Store(kept, 0, 1, 4),
                Jump(done),
            ]
        ops += [bare, *self._already(groups, gid, kept, done)]
        return Step(
            Phase.CREDENTIALS,
            text,
            (*ops, done),
            hints={
                errno.EPERM: "groups cannot be set here: the user namespace denies setgroups, or CAP_SETGID is missing"
                if groups
                else "the caller has supplementary groups and no right to drop them; add UserNamespace(), or accept"
                " them with Credentials(groups=None)",
                errno.EINVAL: Finding(
                    "a group is not mapped in the user namespace",
                    "map it: UserNamespace(map=IdMap.subordinate()), or name one that is",
                ),
            },
        )

    @staticmethod
    def _already(groups: list[int], gid: int | None, kept: Buffer, done: Label) -> list[Op]:
        """Go on at ``done`` if the groups that cannot be changed are as wanted; else EPERM.

        A list that holds the program's own gid alone, as ``initgroups`` makes it for every login user, gives nothing
        that the gid does not: it counts as none.
        """
        room = max(1, len(groups)) + 1
        table, count, refused = Buffer(4 * room, "groups"), Register("count"), Label()
        ops: list[Op] = [
            # EINVAL: there are more than fit.
            call("getgroups", room, table, out=count, errors=(errno.EINVAL,), policy="jump", label=refused),
        ]
        if groups:
            ops.append(Test(count, len(groups), label=refused))
            # The kernel keeps them sorted.
            ops += [Test(Load(table, 4 * i, 4), group, label=refused) for i, group in enumerate(groups)]
        else:
            own = Register("egid")
            ops += [
                Test(count, 0, label=done, negate=True),
                Test(count, 1, label=refused),
                call("getegid", out=own),
                Test(Load(table, 0, 4), own if gid is None else gid, label=refused),
                Store(kept, 0, 1, 4),
            ]
        return [*ops, Jump(done), refused, Fail(errno.EPERM)]

    def _set(self, kind: str, value: int | None) -> Generator[Step, None, Argument]:
        wanted: Argument
        ops: tuple[Op, ...] = ()
        if value is None:
            wanted = Register(f"e{kind}")
            ops = (call(f"gete{kind}", out=wanted),)
            text = f"real and saved {kind} as the effective one"
        else:
            wanted = value
            text = f"become {kind} {value}"
        yield Step(
            Phase.CREDENTIALS,
            text,
            (*ops, call(f"setres{kind}", wanted, wanted, wanted)),
            hints={
                errno.EINVAL: Finding(
                    f"{kind} {value} is not mapped in the user namespace",
                    f"map it: UserNamespace({kind}={value}) maps the caller to it, and UserNamespace(map="
                    "IdMap.subordinate()) maps many",
                ),
                errno.EPERM: Finding(
                    f"changing the {kind} needs CAP_SET{kind.upper()}", "add UserNamespace(), or run as root"
                ),
                errno.EAGAIN: Finding(
                    "the user has more processes than its RLIMIT_NPROC", "end some, or raise it: ulimit -u"
                ),
            },
        )
        return wanted

    def _verify(self, uid: Argument, gid: Argument, kept: Buffer) -> Iterator[Step]:
        ops: list[Op] = []
        for kind, wanted in (("uid", uid), ("gid", gid)):
            ids = Buffer(12, f"{kind}s")
            ops.append(call(f"getres{kind}", ids, ids.at(4), ids.at(8)))
            ops += [Test(Load(ids, i, 4), wanted, error=errno.EPERM) for i in (0, 4, 8)]
        ops.append(call("umask", self.umask, expect=self.umask))
        if self.groups is not None:
            done = Label()
            groups = sorted(set(self.groups))
            table = Buffer(4 * len(groups) + 4, "groups")
            ops.append(Test(Load(kept, 0, 4), 0, label=done))
            # The kernel answers EINVAL if there are more than fit; it keeps them sorted.
            ops.append(call("getgroups", len(groups) + 1, table, expect=len(groups)))
            ops += [Test(Load(table, 4 * i, 4), group, error=errno.EPERM) for i, group in enumerate(groups)]
            ops.append(done)
        yield Step(
            Phase.VERIFY,
            "verify ids, groups and umask",
            tuple(ops),
            hints={
                errno.EPERM: "the ids that the kernel reports are not those that were set",
                errno.EIO: "the groups or the umask that the kernel reports are not those that were set",
                errno.EINVAL: "more supplementary groups are left than were set",
            },
        )


def _setgroups_denied() -> bool:
    """Whether the caller itself is in a user namespace where nobody can change groups."""
    try:
        with open("/proc/self/setgroups", "rb") as file:
            return file.read().strip() == b"deny"
    except OSError:
        return False
