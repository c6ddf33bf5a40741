"""An image as the root of a sandbox."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from errno import EACCES, ESTALE
from typing import TYPE_CHECKING

from isolate.engine.beneath import O_DIRECTORY
from isolate.engine.finding import Finding
from isolate.engine.plan import Buffer, Load, Op, Phase, Register, Step, Test, call
from isolate.errors import ConflictError
from isolate.images.given import Given
from isolate.images.image import Image
from isolate.images.shown import layers_of
from isolate.images.store import Store
from isolate.images.upper import Upper
from isolate.kernel import checks
from isolate.kernel.checks import keywords
from isolate.kernel.constants import AT_FDCWD, O_CLOEXEC, O_RDONLY
from isolate.kernel.paths import StrOrBytesPath, inside, text
from isolate.mounts import owners
from isolate.mounts.calls import STATX_DEV, STATX_INO, STATX_SIZE, attributes, clone, move_to, stat
from isolate.mounts.overlay import MAX_LAYERS
from isolate.mounts.root import Root
from isolate.mounts.showing import Shown
from isolate.mounts.stacking import Stacking
from isolate.mounts.tmpfs import PAGE, check_inodes
from isolate.namespaces.part import UserNamespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from isolate.engine.ops import Slot
    from isolate.engine.plan import Context
    from isolate.mounts.building import Building
    from isolate.namespaces.ids import IdMap

__all__ = ["ImageRoot"]

_F_DUPFD_CLOEXEC = 1030
_OPEN = O_RDONLY | O_DIRECTORY | O_CLOEXEC
_LAYER_HINTS: dict[int, str | Finding] = {
    EACCES: Finding(
        "the sandbox may not enter a directory of the layer, or the store's: its owner is not in the sandbox's id map,"
        " and its mode keeps others out",
        "map every id, or at least 0 and the owner: UserNamespace(map=IdMap.unprivileged()) for root, with the"
        " same uid= and gid=; for others Store(path, map=ids) and"
        " UserNamespace(map=ids) with ids = IdMap.subordinate()",
    ),
    2: "a directory of the store is gone",
    ESTALE: "the store was moved, or covered by a mount, since it was opened",
}


@keywords
@dataclass(frozen=True, repr=False)
class ImageRoot(Shown):
    """The layers of an image as one tree, at ``target``: the root, as a rule.

    ``store`` has the layers unpacked; they are shared by everything that uses them, and cannot be collected while a
    sandbox does. ``writable`` is an :class:`Upper` in which changes are kept until they are committed or discarded;
    without one they go to memory, at most ``size`` bytes in ``inodes`` files, and are gone with the sandbox; with
    ``read_only`` there are none. nosuid and nodev always, so set-uid files and devices of an image have no effect.

    In a user namespace files have the owners that the image says: the caller's layers are mounted with its map
    (Linux 5.12; for root on the host), so one copy serves any number of maps. For others the store's own map is the
    namespace's: one id, or a subordinate range (``Store(path, map=IdMap.subordinate())``).

    ``directory`` is the part of the image that is shown, such as the files of a volume: a directory in it, with its own
    mode and owner; no link on the way to it is followed.

    Overlayfs's own attributes in the layers are not followed (``redirect_dir=nofollow``, ``metacopy=off``), but for
    those of a store that shares contents: they name files of its own in a data-only layer (Linux 6.16).

    Needs CAP_SYS_ADMIN, or a user namespace and Linux 5.11; more than about 80 layers, Linux 6.13.

    Source: Documentation/filesystems/overlayfs.rst, mount_setattr(2) for the id map.

    :param image: image of the store.
    :param target: absolute path inside the sandbox.
    :param store: the :class:`Store` that has its layers.
    :param writable: an :class:`Upper` that keeps the changes; None keeps them in memory.
    :param read_only: nothing can be changed.
    :param exec: programs in it can be executed.
    :param size: of the changes in memory, in bytes, such as ``"256M"``.
    :param inodes: files and directories of the changes in memory; one for each 4 KiB of ``size`` unless given.
    :param directory: absolute path in the image of what is shown.
    :raises ConflictError: more than 500 layers; ``writable`` with ``read_only``, with a directory, over no layer, or of
        another image; a directory that the image does not have; a store whose map is not that of the sandbox.
    :raises SetupError: when something starts: the kernel refuses the mount, or the sandbox may not enter a layer.

    >>> with Store("/tmp/images") as store:  # doctest: +SKIP
    ...     image = store.pull("registry.example/debian:12")
    ...     Sandbox(UserNamespace(), Root(ImageRoot(image, store=store))).run(["cat", "/etc/debian_version"])
    """

    image: Image
    target: StrOrBytesPath = "/"
    _: KW_ONLY
    store: Store
    writable: Upper | None = None
    read_only: bool = False
    exec: bool = True
    size: int | str = "256M"
    inodes: int | None = None
    directory: StrOrBytesPath = "/"

    def __post_init__(self) -> None:
        if not isinstance(self.image, Image):
            raise TypeError(f"ImageRoot: image must be an Image, not {self.image!r}; store.open(name) gives one")
        if not isinstance(self.store, Store):
            raise TypeError(f"ImageRoot: store must be a Store, not {self.store!r}")
        if self.writable is not None and not isinstance(self.writable, Upper):
            raise TypeError(f"ImageRoot: writable must be an Upper or None, not {self.writable!r}: Upper(store)")
        object.__setattr__(self, "target", inside(self.target, "ImageRoot: target"))
        object.__setattr__(self, "directory", inside(self.directory, "ImageRoot: directory"))
        if self.writable is not None and self._part:
            raise ConflictError("ImageRoot: writable has the changes of an image as a whole, not of a directory")
        if self.writable is not None and self.read_only:
            raise ConflictError("ImageRoot: writable and read_only contradict one another")
        if self.writable is not None and not self.image.diffids:
            raise ConflictError("ImageRoot: writable stands over a layer, and the image has none: add one, with Layer")
        if len(self.image.diffids) > MAX_LAYERS:
            raise ConflictError(f"ImageRoot: the kernel stacks {MAX_LAYERS} layers, not {len(self.image.diffids)}")
        checks.size("ImageRoot: size", self.size, PAGE)
        if self.inodes is not None:
            check_inodes(self.inodes)
        if self.writable is not None:
            self.writable.use(self.image, self.store)

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    @property
    def _part(self) -> bytes:
        """The directory, without slashes at its ends; nothing for the whole."""
        return inside(self.directory).strip(b"/")

    def _shown(self) -> list[int]:
        """The numbers of the layers whose directory shows, the uppermost first.

        :raises ConflictError: none does.
        """
        if not self._part:
            return list(reversed(range(len(self.image.diffids))))
        found = layers_of(self.image, self.store, self._part)
        if not found:
            raise ConflictError(f"ImageRoot: the image has no directory {text(inside(self.directory))}")
        return found

    def tree(self, building: Building) -> tuple[Register, Iterable[Step]]:
        """The mount, attached nowhere yet."""
        return (out := Register("image")), self._steps(building, out)

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Open the layers, stack them, mount them in the new root."""
        out, steps = self.tree(building)
        yield from steps
        yield building.mount(out, self.place)

    def _shift(self, context: Context) -> IdMap | None:
        """The map that the layers are to be mounted with, None where they are as they should be."""
        part = context.find(UserNamespace)
        if part is None or not context.privileged or part.joined:
            return None
        ids = part.ids(context)
        own = self.store.trees.map
        same = all(r.inside == r.outside for r in (*ids.uids, *ids.gids))
        if own is not None:
            if ids != own:
                raise ConflictError("ImageRoot: the store keeps its layers for another id map than the sandbox has")
            return None
        return None if same else ids

    def _stubs(self, context: Context) -> list[bytes]:
        """The places in this tree that other entries are mounted on, and their parents."""
        root = context.find(Root)
        top = self.place.rstrip(b"/") + b"/"
        found: set[bytes] = set()
        for entry in root.entries if root is not None else ():
            place = getattr(entry, "place", None)
            path = place[len(top) :] if isinstance(place, bytes) and place.startswith(top) else b""
            while path:
                found.add(path)
                path = path.rpartition(b"/")[0]
        return sorted(found)

    def _steps(self, building: Building, out: Register) -> Iterator[Step]:
        context = building.context
        ids = self._shift(context)
        diffids = self.image.diffids
        shown = self._shown()
        stubs = self._stubs(context) if self.writable is not None else []
        outlines = 0 in shown and self.store.trees.has_outlines(diffids)
        if len(shown) + outlines > MAX_LAYERS:
            raise ConflictError(f"ImageRoot: the kernel stacks {MAX_LAYERS} layers, and one has the contents of files")
        given = Given(self.store, diffids, self.writable, stubs, shown, contents=outlines)
        slots = context.resource(given, given.count)
        names = [diffids[number].partition(":")[2][:12] for number in shown]
        tree = b"/".join(filter(None, [b"tree", self._part]))
        yield Step(
            Phase.ADOPT,
            "hold the layers while the sandbox lives, so that nobody collects them",
            tuple(call("fcntl", slot, _F_DUPFD_CLOEXEC, 0) for slot in slots),
        )
        kept = None if self.writable is None else (Register("upper"), Register("work"))
        lower = [Register("layer") for _ in names]
        wanted: list[tuple[str, Slot, list[tuple[bytes, Register]]]] = [
            (f"layer {name}", slot, [(tree, fd)]) for name, slot, fd in zip(names, slots, lower, strict=False)
        ]
        data = Register("contents") if outlines else None
        if data is not None:
            wanted.append(("the contents of files", slots[len(names)], [(b".", data)]))
        if kept is not None:
            wanted.append(("the upper", slots[-1], [(b"fs", kept[0]), (b"work", kept[1])]))
        opening: Callable[[str, Slot, Sequence[tuple[bytes, Register]]], Iterator[Step]] = self._by_name
        namespace = Register("map")
        if ids is not None:
            yield Step(Phase.TREES, "an id map for the layers", (owners.made(ids, namespace),), hints=owners.HINTS)
            opening = _Mapped(building, namespace)
        for words, slot, parts in wanted:
            yield from opening(words, slot, parts)
        if ids is not None:
            yield Step(Phase.TREES, "let go of the id map", (call("close", namespace),), needs=namespace)
        stacking = Stacking(
            self.place,
            len(lower),
            read_only=self.read_only,
            exec=self.exec,
            size=self.size,
            inodes=self.inodes,
            own_xattrs=True,
            volatile=kept is not None,
            owned=True,
        )
        yield from stacking.steps(building, lower, kept, out, contents=data)

    @staticmethod
    def _by_name(words: str, slot: Slot, parts: Sequence[tuple[bytes, Register]]) -> Iterator[Step]:
        """Open directories of the store in the mount namespace that they are to be mounted in.

        A mount of another namespace is refused as a layer: it is looked up by its name, and compared.
        """
        holder = Register("holder")
        name, wanted, found = Buffer(4096, "name"), Buffer(STATX_SIZE, "wanted"), Buffer(STATX_SIZE, "found")
        ops: list[Op] = [
            call("readlinkat", AT_FDCWD, b"/proc/self/fd/%d" % slot.number, name, 4095),
            call("openat", AT_FDCWD, name, _OPEN, 0, out=holder),
            stat(slot, wanted),
            stat(holder, found),
            Test(Load(found, STATX_INO), Load(wanted, STATX_INO), error=ESTALE),
            Test(Load(found, STATX_DEV), Load(wanted, STATX_DEV), error=ESTALE),
            *(call("openat", holder, part, _OPEN, 0, out=fd) for part, fd in parts),
            call("close", holder),
        ]
        yield Step(Phase.SOURCES, f"open {words}", tuple(ops), hints=_LAYER_HINTS)


class _Mapped:
    """Opens directories of the store through mounts with an id map."""

    def __init__(self, building: Building, namespace: Register) -> None:
        self._building = building
        self._namespace = namespace

    def __call__(self, words: str, slot: Slot, parts: Sequence[tuple[bytes, Register]]) -> Iterator[Step]:
        tree = Register("tree")
        yield Step(
            Phase.TREES,
            f"{words}, mounted with the sandbox's id map",
            (
                clone(slot, b"", tree, recursive=False),
                attributes(tree, 0, private=True),
                *owners.given(tree, self._namespace, recursive=False),
            ),
            hints=owners.HINTS,
        )
        yield Step(Phase.ADOPT, f"let go of {words} outside", (call("close", tree),), needs=tree)
        scratch, name, holder = self._building.scratch_root, self._building.next_name(), Register("holder")
        # Before Linux 6.15 a layer must be attached somewhere; the scratch goes with the old root.
        self._building.scratch(
            4096,
            f"open {words}",
            (
                call("mkdirat", scratch, name, 0o700),
                move_to(tree, scratch, name),
                call("openat", scratch, name, _OPEN, 0, out=holder),
                *(call("openat", holder, part, _OPEN, 0, out=fd) for part, fd in parts),
                call("close", holder),
                call("close", tree),
            ),
            _LAYER_HINTS,
        )
