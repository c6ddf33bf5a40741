"""Entries of a root, and the means that they have while the root is built.

An entry yields steps. Those in :attr:`~isolate.Phase.SOURCES` run with the caller's rights while the caller's file
system is there; those in :attr:`~isolate.Phase.ROOT` run in the user's order and reach the new root by its descriptor
alone. The library's own entries have no other means than these.
"""

from __future__ import annotations

from errno import ENOENT
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from isolate.engine.beneath import O_DIRECTORY
from isolate.engine.finding import Finding
from isolate.engine.plan import (
    EACH,
    KEPT,
    Buffer,
    Label,
    Op,
    Phase,
    Register,
    Split,
    Step,
    Target,
    call,
)
from isolate.kernel.constants import (
    AT_FDCWD,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    O_CLOEXEC,
    O_PATH,
    S_IFREG,
    Constant,
)
from isolate.kernel.paths import text
from isolate.mounts.calls import (
    STATX_SIZE,
    aside,
    attributes,
    clone,
    if_directory,
    move,
    move_to,
    new_file_system,
    read_only,
    stat,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from isolate.engine.plan import Context

__all__ = ["Building", "Entry", "TreeEntry"]


#: ESTALE of what was opened by the caller: its place is compared with the one that was meant.
MOVED = Finding(
    "what the descriptor stands for has been moved, removed, or covered by a mount since it was opened", "open it again"
)


@runtime_checkable
class Entry(Protocol):
    """An entry of :class:`~isolate.Root`: any object that yields steps for a root that is being built.

    Optional methods: ``brings()`` returns the parts that it needs, as for :class:`~isolate.Part`. ``writes_to()``
    returns the directories of the host that a program can change through it (paths or descriptors), and
    ``writes_at()`` their paths inside. An entry should be a frozen, hashable dataclass and refuse bad arguments when it
    is made.
    """

    def steps_in(self, building: Building) -> Iterable[Step]:
        """The steps of the entry."""
        ...


@runtime_checkable
class TreeEntry(Entry, Protocol):
    """An entry that is one mount. As the first entry with the target ``/`` it becomes the root itself."""

    @property
    def place(self) -> bytes:
        """Its target: an absolute path inside."""
        ...

    def tree(self, building: Building) -> tuple[Register, Iterable[Step]]:
        """A register with the descriptor of a mount that is attached nowhere yet, and the steps that make it."""
        ...


class Building:
    """A root while it is being built."""

    def __init__(self, context: Context) -> None:
        #: The context of the parts: ids of the caller, the other parts.
        self.context = context
        #: All entries of the root, those that other parts bring included.
        self.entries: tuple[object, ...] = ()
        #: The descriptor of the new root's mount.
        self.root: Register = Register("root")
        self._scratch = Register("scratch")
        # One after the other they hold the descriptor of a target: a tape has so many registers.
        self._place = Register("target")
        #: The path of the new root in the scratch, if the root is ours and holds no foreign files.
        self.own: bytes | None = None
        #: The paths that have been mounted on so far.
        self.taken: set[bytes] = set()
        #: Other paths that have been made: directories, and symbolic links with their targets.
        self.made: dict[bytes, bytes | None] = {}
        self._room = 0
        self._inodes = 64
        self._scratch_steps: list[Step] = []
        self._last: list[Step] = []
        #: Where something is mounted that each start makes for itself, and where files lie that are not ours alone
        #: (or a link of ours leads somewhere): what is mounted below is no part of a tree that is made once.
        self._each: set[bytes] = set()
        self._foreign: set[bytes] = set()

    # ---- a tree that is made once ----------------------------------------------------------------------------

    def kept(self, place: bytes, split: Split = KEPT, *, foreign: bool = False) -> Split | None:
        """How a step is divided that mounts or makes something at a place, for good; None where it cannot be.

        ``foreign``: what is shown there is not ours alone to change.
        """
        apart = self.own is None or _within(place, self._each) or _within(place, self._foreign)
        if foreign:
            self._foreign.add(place)
        return None if apart else split

    def each(self, place: bytes, *, symlinks: bool = True, mode: int = 0o755) -> Split:
        """How a step is divided that mounts something at a place which each start makes for itself: the place is made
        once, where it is in a directory of ours."""
        ours = self.own is not None and not _within(place, self._each) and not _within(place, self._foreign)
        self._each.add(place)
        making = Target(self.root, place, self._place, make="dir", mode=mode, symlinks=symlinks)
        return Split(build=(making, call("close", self._place)) if ours else (), again=None)

    # ---- targets ---------------------------------------------------------------------------------------------

    def attach(
        self,
        tree: Register,
        target: bytes,
        *,
        kind: str | Buffer = "dir",
        root: Register | None = None,
        symlinks: bool = True,
        mode: int = 0o755,
    ) -> list[Op]:
        """Move a mount to a path beneath the root, which is made where missing. The mount's descriptor stays open.

        ``kind`` says what is mounted: ``"dir"``, ``"file"``, or a buffer with the statx(2) of the mount, to look at
        when it runs. ``root`` is another descriptor to start from; ``symlinks=False`` refuses symbolic links in every
        component.
        """
        place = self._place
        begin = self.root if root is None else root
        if root is None:
            self.taken.add(target)
        ops = self._kinds(
            kind,
            [Target(begin, target, place, make="dir", mode=mode, symlinks=symlinks)],
            [Target(begin, target, place, make="file", mode=0o644, symlinks=symlinks)],
        )
        return [*ops, move(tree, place), call("close", place)]

    def mount(
        self,
        tree: Register,
        target: bytes,
        *,
        kind: str | Buffer = "dir",
        mode: int = 0o755,
        needs: Register | None = None,
        template: Split | None = None,
    ) -> Step:
        """The step that attaches a mount (see :meth:`attach`) and lets go of its descriptor."""
        return Step(
            Phase.ROOT,
            f"mount it on {text(target)}",
            (*self.attach(tree, target, kind=kind, mode=mode), call("close", tree)),
            path=target,
            needs=needs,
            template=template,
        )

    def put(self, tree: Register, fs: Register, name: bytes, *, kind: str = "dir", mode: int = 0o755) -> list[Op]:
        """Move a mount to a new name in a directory of our own that nobody else has ever reached.

        Nothing needs to be resolved there: making the place fails if anything stands in it, and move_mount(2) does not
        follow the last component. The mount's descriptor stays open.
        """
        made = call("mkdirat", fs, name, mode) if kind == "dir" else call("mknodat", fs, name, S_IFREG | mode, 0)
        return [made, move_to(tree, fs, name)]

    @staticmethod
    def _kinds(kind: str | Buffer, directory: list[Op], file: list[Op]) -> list[Op]:
        if isinstance(kind, Buffer):
            return if_directory(kind, directory, file)
        return directory if kind == "dir" else file

    # ---- things of ours to mount -----------------------------------------------------------------------------

    def scratch(
        self, room: int, text: str, ops: Iterable[Op], hints: Mapping[int, str | Finding] | None = None
    ) -> Register:
        """Make something in a file system of our own, of which clones are mounted; nobody inside ever reaches it.

        ``room`` is how many bytes it needs; ``ops`` make it, by the descriptor that this method gives. ``hints`` as for
        :class:`Step`.
        """
        self._room += -(-room // 4096) * 4096
        self._scratch_steps.append(Step(Phase.ROOT, text, tuple(ops), template=KEPT, hints=hints or {}))
        return self._scratch

    @property
    def scratch_root(self) -> Register:
        """The descriptor of the scratch file system: for the ops given to :meth:`scratch`."""
        return self._scratch

    def empty(self) -> tuple[bytes, bytes]:
        """The names in the scratch of a directory and a file that are empty: what masks are made of."""
        if "mounts.empty" not in self.context.shared:
            self.context.shared["mounts.empty"] = True
            fd = Register("file")
            self.scratch(
                4096,
                "an empty directory and an empty file, for masks",
                (
                    call("mkdirat", self._scratch, EMPTY_DIRECTORY, 0o555),
                    call("openat", self._scratch, EMPTY_FILE, CREATE, 0o444, out=fd),
                    call("close", fd),
                ),
            )
        return EMPTY_DIRECTORY, EMPTY_FILE

    def directory(
        self, what: str, name: bytes, out: Register, flags: int, *, room: int, inodes: int, mode: int
    ) -> Step:
        """A small directory that becomes a mount of its own: of the scratch, so that it costs no further file system.

        It is writable while the root is built. Make it read-only at the end (:meth:`at_end`): it shares the scratch's
        limits, to which ``room`` bytes and ``inodes`` are added.
        """
        self.scratch(room, f"a directory for {what}", (call("mkdirat", self._scratch, name, mode),))
        self._inodes += inodes
        return Step(
            Phase.ROOT,
            f"{what} is that directory",
            (
                clone(self._scratch, name, out, recursive=False),
                attributes(out, flags, clear=MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC),
            ),
            template=KEPT,
        )

    def add_inodes(self, count: int) -> None:
        """Count this many more files than steps in the scratch."""
        self._inodes += count

    def next_name(self) -> bytes:
        """A name in the scratch that nobody else has."""
        n = self.context.shared.get("mounts.names", 0)
        assert isinstance(n, int)
        self.context.shared["mounts.names"] = n + 1
        return b"%d" % n

    def at_end(self, step: Step) -> None:
        """A step that runs once every entry is in place, such as making a file system read-only."""
        self._last.append(step)

    def first_steps(self) -> Iterator[Step]:
        """The scratch, if an entry wants one."""
        if not self._scratch_steps:
            return
        making: tuple[Op, ...] = (
            *new_file_system(
                b"tmpfs",
                self._scratch,
                [
                    (b"size", b"%d" % (self._room + 16384)),
                    (b"nr_inodes", b"%d" % (self._inodes + 2 * len(self._scratch_steps) + 2)),
                    (b"mode", b"0700"),
                ],
                MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
            ),
            *aside(self._scratch),
        )
        # In a tree that is made once it stays, hidden beneath the root. A start has it as its working directory.
        places = (call("mkdirat", self._scratch, HIDDEN_PROC, 0o555), call("mkdirat", self._scratch, OLD_ROOT, 0o555))
        found = call("openat", AT_FDCWD, b".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0, out=self._scratch)
        yield Step(
            Phase.ROOT,
            "a scratch file system, gone when the old root goes",
            making,
            template=Split(build=(*making, *places), again=(found,)),
        )
        yield from self._scratch_steps
        # Mounts that are cloned from it are read-only.
        yield Step(Phase.ROOT, "the scratch is complete", (read_only(self._scratch),), template=KEPT)

    def last_steps(self) -> Iterator[Step]:
        """The steps that were kept for the end."""
        yield from self._last
        if self._scratch_steps:
            yield Step(Phase.ROOT, "let go of the scratch", (call("close", self._scratch),), template=EACH)

    def cover(
        self, root: Register, path: bytes, *, symlinks: bool, missing: str = "error", file_system: int = 0
    ) -> list[Op]:
        """Mount something empty and read-only over a path beneath ``root``, a directory or a file like what is there.

        With ``missing="ignore"`` a path that does not exist is left alone. The covers are ours, from the scratch: no
        device node of a tree that somebody else controls is trusted to be empty.
        """
        directory, file = self.empty()
        place, cover, kind, end = self._place, Register("cover"), Buffer(STATX_SIZE, "stat", scratch=True), Label()
        ignored = (ENOENT,) if missing == "ignore" else ()
        return [
            Target(
                root, path, place, symlinks=symlinks, file_system=file_system, errors=ignored, policy="jump", label=end
            ),
            stat(place, kind),
            *if_directory(
                kind,
                [clone(self._scratch, directory, cover, recursive=False)],
                [clone(self._scratch, file, cover, recursive=False)],
            ),
            move(cover, place),
            call("close", cover),
            call("close", place),
            end,
        ]

    def freeze(
        self,
        root: Register,
        path: bytes,
        *,
        symlinks: bool,
        recursive: bool,
        missing: str = "error",
        file_system: int = 0,
    ) -> list[Op]:
        """Mount what is at a path beneath ``root`` over itself, read-only."""
        place, tree, end = self._place, Register("tree"), Label()
        ignored = (ENOENT,) if missing == "ignore" else ()
        return [
            Target(
                root, path, place, symlinks=symlinks, file_system=file_system, errors=ignored, policy="jump", label=end
            ),
            clone(place, b"", tree, recursive=recursive),
            read_only(tree, recursive=recursive),
            move(tree, place),
            call("close", tree),
            call("close", place),
            end,
        ]


# ---- ops that several entries need ---------------------------------------------------------------------------------

CREATE = Constant(0o2000301, "O_CREAT|O_EXCL|O_WRONLY|O_CLOEXEC")
EMPTY_DIRECTORY, EMPTY_FILE = b"empty-directory", b"empty-file"
HIDDEN_PROC, OLD_ROOT = b"proc", b"old-root"


def _within(place: bytes, places: Iterable[bytes]) -> bool:
    """Whether a path is one of these, or lies below one."""
    return any(place == other or place.startswith(other.rstrip(b"/") + b"/") for other in places)
