"""A root of its own: a tree of mounts that the sandbox sees as ``/``, and nothing else of the host (pivot_root(2))."""

from __future__ import annotations

import os
from dataclasses import dataclass
from errno import EBUSY, EINVAL, EPERM
from typing import TYPE_CHECKING, ClassVar

from isolate.engine.beneath import O_DIRECTORY
from isolate.engine.plan import KEPT, Buffer, Label, Load, Op, Part, Phase, Register, Split, Step, Test, call
from isolate.errors import ConflictError
from isolate.kernel import checks
from isolate.kernel.checks import keywords
from isolate.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    O_CLOEXEC,
    O_PATH,
    Constant,
)
from isolate.mounts.building import HIDDEN_PROC, OLD_ROOT, Building, Entry, TreeEntry
from isolate.mounts.calls import STATX_MNT_ID, STATX_SIZE, move, move_to, new_file_system, on_top, read_only
from isolate.mounts.dev import Dev
from isolate.mounts.dev_null import over_the_host
from isolate.mounts.tmpfs import Tmpfs, check_inodes, check_mode
from isolate.namespaces.part import MountNamespace
from isolate.thread.entering import Irreversible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.engine.plan import Context

__all__ = ["Root"]

STATX_MNT_ID_MASK = Constant(0x1000, "STATX_MNT_ID")
STACKED = 8  # what the host may have, and the scratch where there is no /sys


def _way(entry: object) -> int:
    """How many files may have to be made for an entry's place, with the directories on the way to it."""
    place = getattr(entry, "place", None) or getattr(entry, "target", None)
    return os.fsencode(place).count(b"/") if isinstance(place, (str, bytes, os.PathLike)) else 0


@keywords
@dataclass(frozen=True, init=False)
class Root(Irreversible):
    """A root file system made of ``entries``, in their order; it brings a mount namespace of its own.

    If the first entry's target is ``/`` (a :class:`Bind`, :class:`Overlay` or :class:`Tmpfs`), it is the root.
    Otherwise the root is a small tmpfs, at most ``size`` bytes in ``inodes`` files besides the places that the entries
    are mounted on and, with ``read_only`` (the default), cannot be written by anybody inside.

    Inside, the old root is gone: not hidden but unmounted. Targets are made where missing, with mode 0755, and
    resolved by descriptor beneath the new root: symbolic links in a tree that somebody else controls lead nowhere
    outside of it. The host's mount table never changes.

    Needs CAP_SYS_ADMIN or a user namespace; Linux 5.14.

    :raises ConflictError: an entry other than the first has the target ``/``, or the first cannot be a root.

    :param entries: what it is made of, in this order.
    :param size: of the small tmpfs that the root is, in bytes.
    :param inodes: of that tmpfs, besides the entries' places.
    :param mode: permission bits of the top directory.
    :param read_only: nobody inside can write to the root itself.

    >>> Sandbox(UserNamespace(), Root(Bind("/", "/"))).run(["touch", "/new"]).ok
    False
    """

    #: The program sees this root, and not the caller's.
    makes_root: ClassVar[bool] = True

    entries: tuple[Entry, ...]
    size: int | str
    inodes: int
    mode: int
    read_only: bool

    def __init__(
        self, *entries: Entry, size: int | str = "1M", inodes: int = 1024, mode: int = 0o755, read_only: bool = True
    ) -> None:
        for entry in entries:
            if isinstance(entry, type) or not isinstance(entry, Entry):
                hint = f"; did you mean {entry.__name__}(...)?" if isinstance(entry, type) else ""
                if isinstance(entry, Part):
                    hint = "; it is a part: Sandbox(…, part), and a preset takes it by limits= or extra="
                elif isinstance(entry, (list, tuple, set)):
                    hint = "; entries are given one by one: Root(*entries)"
                raise TypeError(f"Root: not an entry: {entry!r}{hint}")
        checks.size("Root: size", size, 4096)
        check_inodes(inodes)
        check_mode(mode)
        for index, entry in enumerate(entries):
            if getattr(entry, "place", None) == b"/" and (index or not isinstance(entry, TreeEntry)):
                raise ConflictError(f"Root: only the first entry, and only a mount, can have the target '/': {entry!r}")
        if getattr(entries[0] if entries else None, "optional", False) and getattr(entries[0], "place", None) == b"/":
            raise ConflictError(f"Root: the root itself cannot be optional: {entries[0]!r}")
        for name, value in (
            ("entries", entries),
            ("size", size),
            ("inodes", inodes),
            ("mode", mode),
            ("read_only", read_only),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        own = Root()
        names = [name for name in ("size", "inodes", "mode", "read_only") if getattr(self, name) != getattr(own, name)]
        return f"Root({', '.join([*map(repr, self.entries), *(f'{n}={getattr(self, n)!r}' for n in names)])})"

    def with_entries(self, *entries: Entry) -> Root:
        """The same root with other entries."""
        return Root(*entries, **{name: getattr(self, name) for name in ("size", "inodes", "mode", "read_only")})

    def __add__(self, other: Entry | Iterable[Entry]) -> Root:
        """With more entries, behind these."""
        more = (other,) if isinstance(other, (Entry, type)) else tuple(other)
        return self.with_entries(*self.entries, *more)

    def replace(self, *entries: Entry) -> Root:
        """With these entries where those of the same kind at the same place are; others are added behind.

        The place is the target; what has none is replaced by its kind alone.
        """
        found = list(self.entries)
        for entry in entries:
            same = [
                i
                for i, other in enumerate(found)
                if type(other) is type(entry) and getattr(other, "place", None) == getattr(entry, "place", None)
            ]
            if same:
                found[same[-1]] = entry
            else:
                found.append(entry)
        return self.with_entries(*found)

    def without(self, *kinds: type[Entry] | str | bytes | os.PathLike[str]) -> Root:
        """Without the entries of these kinds, or at these places: ``without(Tmpfs)``, ``without("/tmp")``.

        :raises ValueError: there is none.
        """
        found = list(self.entries)
        for kind in kinds:
            if isinstance(kind, type):
                kept = [entry for entry in found if not isinstance(entry, kind)]
            else:
                kept = [entry for entry in found if getattr(entry, "place", None) != os.fsencode(kind)]
            if len(kept) == len(found):
                name = kind.__name__ if isinstance(kind, type) else repr(os.fsdecode(kind))
                raise ValueError(f"without: there is no entry {name} in this root")
            found = kept
        return self.with_entries(*found)

    def leaves_files(self) -> bool:
        """Whether an entry lets the program change files of the host, which are there afterwards."""
        tell = [getattr(entry, "writes_to", None) for entry in self.entries]
        return any(True for each in tell if each is not None for _ in each())

    def brings(self) -> Iterator[Part]:
        """A mount namespace, and what the entries need."""
        yield MountNamespace()
        for entry in self.entries:
            brings = getattr(entry, "brings", None)
            if brings is not None:
                yield from brings()

    def steps(self, context: Context) -> Iterator[Step]:
        """Sources, the new root and what is in it, the way in."""
        building = Building(context)
        entries = list(self.entries)
        for part in context.parts:  # what other parts have in every root: where names are asked for, say
            more = getattr(part, "root_entries", None)
            entries += more(context) if more is not None else ()
        building.entries = tuple(entries)
        first: list[Step] = []
        # The places of the entries come on top: every directory on the way to them is a file of the root's.
        inodes = self.inodes + sum(_way(entry) for entry in entries)
        if entries and getattr(entries[0], "place", None) == b"/":
            top, made = entries.pop(0), False
        else:
            top, made = Tmpfs("/", size=self.size, inodes=inodes, mode=self.mode), True
        assert isinstance(top, TreeEntry)
        if made and self.read_only and self.mode <= 0o1777:
            # Only the entries write there.
            building.own = b"root"
            flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
            room = checks.size("size", self.size)
            first.append(
                building.directory("the root", b"root", building.root, flags, room=room, inodes=inodes, mode=self.mode)
            )
        else:
            building.root, steps = top.tree(building)
            first += steps
        # A start from a tree that is made once has it as its root.
        found = call("openat", AT_FDCWD, b"/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0, out=building.root)
        first.append(
            Step(
                Phase.ROOT,
                "stack it on the old root",
                (on_top(building.root),),
                template=None if building.own is None else Split(build=None, again=(found,)),
                hints={
                    EINVAL: (
                        "a root must be a directory, and the old one must not be shared with another mount namespace"
                    )
                },
            )
        )
        middle = [step for entry in entries for step in entry.steps_in(building)]
        yield from building.first_steps()
        yield from first
        yield from middle
        yield from building.last_steps()
        if made and self.read_only:
            yield Step(Phase.ROOT, "the root itself is read-only", (read_only(building.root),), template=KEPT)
        mounts = context.find(MountNamespace)
        if not any(isinstance(entry, Dev) for entry in entries) and (mounts is None or not mounts.joined):
            yield over_the_host()
        yield from _enter(building)


def _enter(building: Building) -> Iterator[Step]:
    end = Label()
    new, seen = Buffer(STATX_SIZE, "new"), Buffer(STATX_SIZE, "seen")
    ops: list[Op] = [
        call("fchdir", building.root),
        # The old root comes to lie on the new one (pivot_root(2), "pivot_root(".", ".")"), and is taken off.
        # EINVAL: the old root is the initramfs, or is no mount of its own (chroot): nothing can be swapped there.
        call("pivot_root", b".", b".", errors=(EINVAL,), policy="skip", label=end),
        call("statx", building.root, b"", AT_EMPTY_PATH, STATX_MNT_ID_MASK, new),
    ]
    for _ in range(STACKED):
        # umount2 takes what lies on top: that is the old root, unless something of the host's lies on it, or the
        # scratch. ".." of the root is the root with what lies on it, so it tells whether something still does.
        ops += [
            call("umount2", b".", MNT_DETACH),
            call("statx", AT_FDCWD, b"/..", 0, STATX_MNT_ID_MASK, seen),
            Test(Load(seen, STATX_MNT_ID), Load(new, STATX_MNT_ID), negate=True, label=end),
        ]
    ops += [Test(Load(seen, STATX_MNT_ID), Load(new, STATX_MNT_ID), error=EBUSY), end]
    yield Step(
        Phase.PIVOT,
        "swap the roots and let go of the old one",
        tuple(ops),
        template=Split(build=_hide(building)),
        hints={
            EPERM: "pivot_root needs CAP_SYS_ADMIN in the mount namespace's user namespace",
            EBUSY: "the host has too many mounts stacked on its root: the old root could not be let go",
        },
    )
    yield Step(
        Phase.PIVOT,
        "be in the new root",
        (call("chroot", b"."), call("chdir", b"/"), call("close", building.root)),
        template=Split(again=(call("chdir", b"/"), call("close", building.root))),
    )


def _hide(building: Building) -> Iterator[Op]:
    """For a tree that is made once: the scratch in the place of the old root, and on it the new one, which hides it.

    There is a procfs in it: in a user namespace the kernel gives a new one only to who has one that is whole. It is of
    the pid namespace of the process that builds the tree, so it shows no process once that has ended, and beneath the
    root nothing leads to it.
    """
    proc = Register("proc")
    yield from new_file_system(b"proc", proc, [], MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
    yield move_to(proc, building.scratch_root, HIDDEN_PROC)
    yield call("close", proc)
    yield call("fchdir", building.scratch_root)
    yield call("pivot_root", b".", OLD_ROOT)
    yield move(building.root, building.scratch_root)
    yield call("umount2", OLD_ROOT, MNT_DETACH)
