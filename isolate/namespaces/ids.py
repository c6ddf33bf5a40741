"""Id maps: which users and groups of the host stand behind those inside a user namespace (user_namespaces(7))."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from isolate.errors import SetupError
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.proc import lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["IdMap", "IdRange", "is_host_root", "read_subordinate"]

MAX_ID = 2**32 - 2  # (uid_t) -1 means "no change" to the kernel
#: 65,536 ids within those that systemd leaves to containers (524288 to 1879048191), where useradd gives out none.
UNUSED = 1878982656
MAX_RANGES = 340  # user_namespaces(7), since Linux 4.15


def check_id(value: object, what: str) -> int:
    """An id as an int; names are refused: looking them up in whose /etc/passwd would be a guess."""
    if not is_int(value):
        raise TypeError(f"{what} must be an int, not {value!r} (names are not looked up: inside they may mean others)")
    if not 0 <= value <= MAX_ID:
        raise ValueError(f"{what} must be from 0 to {MAX_ID}, not {value}")
    return value


@keywords
@dataclass(frozen=True, slots=True, order=True)
class IdRange:
    """``count`` ids from ``inside`` on are ``outside`` and following on the host.

    :param inside: first id inside.
    :param outside: first id on the host.
    :param count: how many, at least 1.

    >>> IdRange(0, 100000, 65536).outside
    100000
    """

    inside: int
    outside: int
    count: int = 1

    def __post_init__(self) -> None:
        check_id(self.inside, "inside")
        check_id(self.outside, "outside")
        if not is_int(self.count) or self.count < 1:
            raise ValueError(f"count must be an int from 1 on, not {self.count!r}")
        for first in (self.inside, self.outside):
            if first + self.count - 1 > MAX_ID:
                raise ValueError(f"{first} and the following {self.count - 1} ids go beyond {MAX_ID}")

    def __str__(self) -> str:
        return f"{self.inside} {self.outside} {self.count}"


def is_host_root() -> bool:
    """Whether the caller is root of the initial user namespace (as far as a map of all ids tells)."""
    if os.geteuid() != 0:
        return False
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return True  # no /proc: what the kernel refuses it will say


def _ranges(given: Iterable[IdRange | tuple[int, int, int]], what: str) -> tuple[IdRange, ...]:
    ranges = tuple(sorted(r if isinstance(r, IdRange) else IdRange(*r) for r in given))
    if not ranges:
        raise ValueError(f"{what}: a map needs at least one range")
    if len(ranges) > MAX_RANGES:
        raise ValueError(f"{what}: the kernel takes at most {MAX_RANGES} ranges, not {len(ranges)}")
    for side in ("inside", "outside"):
        ordered = sorted((getattr(r, side), r.count) for r in ranges)
        for (first, count), (second, _) in pairwise(ordered):
            if first + count > second:
                raise ValueError(f"{what}: ranges overlap {side}: {first}+{count} and {second}")
    return ranges


@keywords
@dataclass(frozen=True)
class IdMap:
    """The user and group ids of a user namespace.

    ``uids`` and ``gids`` are ranges (inside, outside, count). More than one id, or another than the caller's own, needs
    CAP_SETUID and CAP_SETGID on the host or the set-uid helpers ``newuidmap`` and ``newgidmap`` (package ``uidmap``),
    which grant what /etc/subuid and /etc/subgid list: ``helpers=True``.

    :raises ValueError: for overlapping, empty or too many ranges.

    :param uids: ranges of user ids.
    :param gids: ranges of group ids.
    :param helpers: let newuidmap and newgidmap write them.

    >>> ids = IdMap.single(1000, 1000, host_uid=os.geteuid(), host_gid=os.getegid())
    >>> Sandbox(UserNamespace(uid=1000, gid=1000, map=ids)).run(["id", "-u"]).stdout
    b'1000\\n'
    """

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]
    helpers: bool = False

    def __init__(
        self,
        uids: Iterable[IdRange | tuple[int, int, int]],
        gids: Iterable[IdRange | tuple[int, int, int]],
        *,
        helpers: bool = False,
    ) -> None:
        object.__setattr__(self, "uids", _ranges(uids, "uids"))
        object.__setattr__(self, "gids", _ranges(gids, "gids"))
        object.__setattr__(self, "helpers", helpers)

    @classmethod
    def single(cls, uid: int, gid: int, *, host_uid: int, host_gid: int) -> IdMap:
        """One user and one group: ``uid`` and ``gid`` inside are ``host_uid`` and ``host_gid`` outside."""
        return cls([IdRange(uid, host_uid)], [IdRange(gid, host_gid)])

    @classmethod
    def subordinate(cls, *, user: str | None = None) -> IdMap:
        """Root inside is the caller; ids from 1 on are the caller's subordinate ids (subuid(5), subgid(5)).

        :raises SetupError: where the user has no entry; the remedy names the command that makes one.
        """
        uid, gid = os.geteuid(), os.getegid()
        maps: list[list[IdRange]] = []
        for path, own in (("/etc/subuid", uid), ("/etc/subgid", gid)):
            ranges = [IdRange(0, own)]
            at = 1
            # The own id is root inside already, and a line by name may say what one by number says.
            for first, count in _without(read_subordinate(path, user=user), [(own, 1)]):
                ranges.append(IdRange(at, first, count))
                at += count
            maps.append(ranges)
        return cls(maps[0], maps[1], helpers=uid != 0)

    @classmethod
    def unprivileged(cls, count: int = 65536) -> IdMap:
        """For root: ``count`` ids from 0 on inside, root among them, are ids of the host that nobody has.

        They are root's subordinate ids (an entry of ``root`` in /etc/subuid and /etc/subgid, with as many ids), or a
        fixed range near the end of what systemd sets apart for containers, 1878982656 and following; so files that a
        container leaves belong to the same ids in the next.

        :raises SetupError: for anybody but the host's root, who alone can map what is not listed.
        """
        if not is_host_root():
            raise SetupError(
                errno.EPERM,
                "map ids that nobody has",
                part="UserNamespace",
                cause="only root of the initial user namespace can",
                remedy="IdMap.subordinate(), or UserNamespace()",
            )
        found: list[int] = []
        for path in ("/etc/subuid", "/etc/subgid"):
            try:
                listed = [first for first, size in read_subordinate(path, user="root") if size >= count and first]
            except SetupError:
                listed = []
            found.append(listed[0] if listed else UNUSED)
        return cls([IdRange(0, found[0], count)], [IdRange(0, found[1], count)])

    def inside(self, outside_uid: int, outside_gid: int) -> tuple[int | None, int | None]:
        """The ids inside of a user and a group of the host; None where they are not mapped."""
        return _inside(self.uids, outside_uid), _inside(self.gids, outside_gid)


def _inside(ranges: Sequence[IdRange], outside: int) -> int | None:
    for r in ranges:
        if r.outside <= outside < r.outside + r.count:
            return r.inside + outside - r.outside
    return None


def outside(ranges: Sequence[IdRange], inside: int) -> int:
    """The host's id behind one inside; -1 where it has none."""
    for r in ranges:
        if r.inside <= inside < r.inside + r.count:
            return r.outside + inside - r.inside
    return -1


def mapped(ranges: Sequence[IdRange], inside: int) -> bool:
    """Whether an id inside has one outside."""
    return any(r.inside <= inside < r.inside + r.count for r in ranges)


def read_subordinate(path: str, *, user: str | None = None) -> list[tuple[int, int]]:
    """The (first, count) ranges that a user may map, from /etc/subuid or /etc/subgid (entries by name and by id).

    :raises SetupError: where there is none.
    """
    import pwd

    uid = os.geteuid()
    names = {str(uid)} if user is None else {user}
    if user is None:
        try:
            names.add(pwd.getpwuid(uid).pw_name)
        except KeyError:
            user = str(uid)
        else:
            user = pwd.getpwuid(uid).pw_name
    assert user is not None
    try:
        with open(path, "rb") as file:
            rows = [_row(line) for line in lines(file.read())]
    except OSError as error:
        raise SetupError(
            error.errno or 2,
            f"read {path}",
            part="UserNamespace",
            syscall="open",
            path=path,
            cause="the file with the subordinate ids cannot be read (package: uidmap)",
            remedy=_grant(path, user, []),
        ) from error
    known = [row for row in rows if row is not None]
    found = [(first, count) for name, first, count in known if name in names]
    if not found:
        held = [(first, count) for _, first, count in known]
        raise SetupError(
            1,
            f"find the subordinate ids of {user} in {path}",
            part="UserNamespace",
            path=path,
            cause=f"{path} has no entry for {user}",
            remedy=_grant(path, user, held),
        )
    return found


def _row(line: str) -> tuple[str, int, int] | None:
    """A line of subuid(5): name, first id, number of ids; None for what is none."""
    fields = line.strip().split(":")
    if len(fields) != 3 or not (fields[1].isdecimal() and fields[2].isdecimal()) or not int(fields[2]):
        return None
    return fields[0], int(fields[1]), int(fields[2])


def _grant(path: str, user: str, held: list[tuple[int, int]]) -> str:
    """The command that gives a user 65,536 ids that nobody holds."""
    first = 100000
    for start, count in sorted(held):
        if start < first + 65536 and start + count > first:
            first = start + count
    option = "--add-subuids" if path.endswith("subuid") else "--add-subgids"
    return f"as root: usermod {option} {first}-{first + 65535} {user}"


def _without(ranges: Iterable[tuple[int, int]], taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (first, count) without the ids of others and without what two of them have in common."""
    used = sorted(taken)
    found: list[tuple[int, int]] = []
    for first, count in ranges:
        at, end = first, first + count
        for start, size in sorted(used):
            if start + size <= at or start >= end:
                continue
            if start > at:
                found.append((at, start - at))
            at = max(at, start + size)
        if at < end:
            found.append((at, end - at))
        used.append((first, count))
    return found
