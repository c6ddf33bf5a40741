"""Layers of directories shown as one (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from errno import EACCES, ESTALE
from typing import TYPE_CHECKING

from isolate.engine.beneath import check_beneath, led_astray, open_beneath, place_of, writable_sources
from isolate.engine.finding import Finding
from isolate.engine.plan import Argument, Phase, Register, Step, call
from isolate.errors import ConflictError
from isolate.kernel import checks
from isolate.kernel.checks import keywords
from isolate.kernel.constants import (
    AT_FDCWD,
    O_CLOEXEC,
    O_PATH,
)
from isolate.kernel.paths import StrOrBytesPath, absolute, inside, text
from isolate.mounts import owners
from isolate.mounts.bind import Source, by_name, check_idmap, descriptor_of
from isolate.mounts.building import MOVED
from isolate.mounts.calls import attributes, clone
from isolate.mounts.reversible import ReversibleMount
from isolate.mounts.showing import Shown
from isolate.mounts.stacking import Stacking
from isolate.mounts.tmpfs import PAGE, check_inodes
from isolate.namespaces.ids import IdMap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolate.mounts.building import Building

__all__ = ["Overlay"]

MAX_LAYERS = 500  # OVL_MAX_STACK


@keywords
@dataclass(frozen=True, repr=False)
class Overlay(Shown, ReversibleMount):
    """The directories ``lower``, the uppermost first, as one tree at ``target``; changes are kept apart from them.

    ``upper`` and ``work`` are directories of the host, in one file system, where changes are kept; without them
    changes go to memory of the sandbox's own, at most ``size`` bytes in ``inodes`` files, and are gone with it.
    ``read_only``: no changes at all. Paths may have any characters, commas and colons included; a layer can also be a
    descriptor of a directory. Layers are not changed, and come without the mounts below them. nosuid and nodev
    always.

    ``beneath`` is a directory that all its paths lie below and that a program may have written to: see :class:`Bind`.

    ``idmap`` gives the files of ``lower`` other owners, as for :class:`Bind` (Linux 5.19); not together with ``upper``,
    which with ``work`` must be in one mount.

    Redirects in a layer's extended attributes (trusted.overlay.redirect, metacopy: "my contents are those of another
    file of the layers below") are not followed. With them the author of a lower layer could show files that another
    layer hides. ``redirects=True`` follows and makes redirects, for layers that are all of your own making. It is not
    possible in a user namespace, where the kernel never follows them.

    Needs CAP_SYS_ADMIN, or a user namespace and Linux 5.11. Errors: EINVAL, with what the kernel may mean by it.

    :raises ConflictError: work without upper or the reverse, upper with read_only, redirects in a user namespace, one
        directory that is two layers.

    :param target: absolute path inside the sandbox.
    :param lower: directories, the uppermost first: at least one.
    :param upper: directory of the host for changes.
    :param work: empty directory in the file system of ``upper``.
    :param read_only: no changes at all.
    :param exec: programs can be executed.
    :param size: limit of changes in memory, where there is no ``upper``.
    :param inodes: limit of changed files in memory.
    :param redirects: follow redirects of layers; not in a user namespace.
    :param beneath: directory that all its paths lie beneath.
    :param idmap: owners of the files of ``lower``.

    >>> box = Sandbox(UserNamespace(), Root(Bind("/", "/"), Overlay("/mnt", lower=["/usr"])))
    >>> box.run(["touch", "/mnt/new"]).ok, os.path.exists("/usr/new")
    (True, False)
    """

    target: StrOrBytesPath
    _: KW_ONLY
    lower: Sequence[Source]
    upper: Source | None = None
    work: Source | None = None
    read_only: bool = False
    exec: bool = True
    size: int | str = "256M"
    inodes: int | None = None
    redirects: bool = False
    beneath: StrOrBytesPath | None = None
    idmap: IdMap | int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "Overlay: target"))
        if isinstance(self.lower, (str, bytes)) or not isinstance(self.lower, Iterable):
            raise TypeError(f"Overlay: lower must be several directories, not {self.lower!r}")
        lower = tuple(_layer(layer, "Overlay: lower") for layer in self.lower)
        if not 1 <= len(lower) <= MAX_LAYERS:
            raise ValueError(f"Overlay: lower must have from 1 to {MAX_LAYERS} directories, not {len(lower)}")
        object.__setattr__(self, "lower", lower)
        if (self.upper is None) != (self.work is None):
            raise ConflictError("Overlay: upper and work go together, both in one file system")
        if self.upper is not None and self.read_only:
            raise ConflictError("Overlay: read_only has no upper; name it as the first of lower")
        for name in ("upper", "work"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _layer(value, f"Overlay: {name}"))
        layers = [*lower, *(layer for layer in (self.upper, self.work) if layer is not None)]
        same = next((layer for n, layer in enumerate(layers) if layer in layers[:n]), None)
        if same is not None:
            name = f"descriptor {same}" if isinstance(same, int) else text(absolute(same))
            raise ConflictError(f"Overlay: {name} is named twice: a directory can be one layer only")
        if self.beneath is not None:
            for layer in layers:
                object.__setattr__(self, "beneath", check_beneath(layer, self.beneath, "Overlay"))
        object.__setattr__(self, "idmap", check_idmap(self.idmap, "Overlay"))
        if self._mapped and self.upper is not None:
            raise ConflictError(
                "Overlay: upper and work must lie in one mount, so they have no id map; chown them to the program's id"
            )
        if not isinstance(self.redirects, bool):
            raise TypeError(f"Overlay: redirects must be True or False, not {self.redirects!r}")
        checks.size("Overlay: size", self.size, PAGE)
        if self.inodes is not None:
            check_inodes(self.inodes)

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    @property
    def _mapped(self) -> bool:
        return self.idmap is not None and self.idmap is not False

    def writes_to(self) -> Iterator[bytes | int]:
        """The directories of the host that a program may change through this entry."""
        for layer in (self.upper, self.work):
            if layer is not None:
                yield layer if isinstance(layer, int) else absolute(layer)

    def writes_at(self) -> Iterator[bytes]:
        """The paths inside of the directories in :meth:`writes_to`."""
        if self.upper is not None:
            yield self.place

    def tree(self, building: Building) -> tuple[Register, Iterable[Step]]:
        """An overlay, attached nowhere yet."""
        return (out := Register("overlay")), self._steps(building, out)

    def _steps(self, building: Building, out: Register) -> Iterator[Step]:
        ids = None if self.idmap is None else owners.chosen(building.context, self.idmap)
        stacking = Stacking(
            self.place,
            len(self.lower),
            read_only=self.read_only,
            exec=self.exec,
            size=self.size,
            inodes=self.inodes,
            redirects=self.redirects,
            attached=ids is not None,
        )
        made = Register("map")
        namespace: Argument = made
        if isinstance(ids, IdMap):
            words = f"an id map for the layers of {text(self.place)}: {owners.text_of(ids)}"
            yield Step(Phase.TREES, words, (owners.made(ids, made),), hints=owners.HINTS)
        elif ids is not None:
            namespace = building.context.descriptor(ids)
        lower = [Register("lower") for _ in self.lower]
        for source, fd in zip(self.lower, lower, strict=True):
            if ids is not None:
                yield from _open_mapped(building, source, fd, namespace, self.beneath)
            else:
                yield _open(building, source, fd, "lower", self.beneath)
        if isinstance(ids, IdMap):
            yield Step(Phase.TREES, "let go of the id map", (call("close", made),), needs=made)
        kept: tuple[Register, Register] | None = None
        if self.upper is not None:
            assert self.work is not None
            kept = Register("upper"), Register("work")
            for name, directory, fd in zip(("upper", "work"), (self.upper, self.work), kept, strict=True):
                yield _open(building, directory, fd, name, self.beneath)
        yield from stacking.steps(building, lower, kept, out)

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Open the layers while the caller's files are there; make the overlay, mount it."""
        out, steps = self.tree(building)
        yield from steps
        yield building.mount(out, self.place)


def _layer(value: object, what: str) -> bytes | int:
    fd = descriptor_of(value)
    return absolute(value, what) if fd is None else fd


def _open(
    building: Building,
    source: Source,
    fd: Register,
    name: str,
    beneath: StrOrBytesPath | None,
    *,
    by_descriptor: bool = False,
) -> Step:
    path: bytes | None = None
    below: tuple[bytes, bytes] | None = None
    if isinstance(source, int):
        # A mount of another namespace is refused as a layer, so it is looked up here by its name, and compared.
        slot = building.context.descriptor(source)
        opening = by_name(slot, lambda name: call("openat", AT_FDCWD, name, O_PATH | O_CLOEXEC, 0, out=fd), fd)
        ops = [] if by_descriptor else opening
        words = f"descriptor {source}"
    else:
        path = absolute(source)
        below = place_of(path, writable_sources(building.context), None if beneath is None else absolute(beneath))
        if below is None:
            ops = [call("openat", AT_FDCWD, path, O_PATH | O_CLOEXEC, 0, out=fd)]
        else:
            ops = open_beneath(*below, fd)
        words = text(path)
    hints = {
        EACCES: Finding(
            "the caller may not reach the layer (root in a new user namespace has no power over others' files)"
        ),
        ESTALE: MOVED,
    }
    if below is not None:
        hints |= led_astray(below[0])
    return Step(Phase.SOURCES, f"open the {name} layer {words}", tuple(ops), path=path, hints=hints)


def _open_mapped(
    building: Building, source: Source, tree: Register, namespace: Argument, beneath: StrOrBytesPath | None
) -> Iterator[Step]:
    """A layer as a mount with an id map: by root, outside of the new namespaces."""
    opening = _open(building, source, found := Register("layer"), "lower", beneath, by_descriptor=True)
    ops = [*opening.ops]
    if isinstance(source, int):
        ops.append(clone(building.context.descriptor(source), b"", tree, recursive=False))
    else:
        ops += [clone(found, b"", tree, recursive=False), call("close", found)]
    ops += [attributes(tree, 0, private=True), *owners.given(tree, namespace, recursive=False)]
    yield Step(Phase.TREES, opening.text, tuple(ops), path=opening.path, hints={**opening.hints, **owners.HINTS})
    yield Step(Phase.ADOPT, "let go of the layer outside", (call("close", tree),), needs=tree)
