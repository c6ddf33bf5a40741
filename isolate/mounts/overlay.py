"""Layers of directories shown as one (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from isolate.engine.beneath import check_beneath, led_astray, open_beneath, place_of, writable_sources
from isolate.engine.plan import Argument, Buffer, Label, Load, Op, Phase, Register, Step, Store, Test, call
from isolate.errors import ConflictError
from isolate.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FD,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    O_CLOEXEC,
    O_PATH,
    Constant,
)
from isolate.kernel.paths import StrOrBytesPath, absolute, inside, text
from isolate.kernel.sizes import size as parse_size
from isolate.mounts import owners
from isolate.mounts.bind import Source, by_name, check_idmap, descriptor_of
from isolate.mounts.building import (
    EACCES,
    EBADF,
    EBUSY,
    EINVAL,
    ENODEV,
    ENOENT,
    ENOTDIR,
    EPERM,
    STATX_GID,
    STATX_MODE,
    STATX_SIZE,
    STATX_UID,
    TARGET_HINTS,
    attributes,
    clone,
    new_file_system,
    on_top,
    stat,
)
from isolate.mounts.reversible import ReversibleMount
from isolate.mounts.showing import Shown
from isolate.mounts.tmpfs import PAGE, check_inodes, default_inodes, pages
from isolate.namespaces.ids import IdMap
from isolate.namespaces.part import UserNamespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolate.mounts.building import Building

__all__ = ["Overlay"]

MAX_LAYERS = 500  # OVL_MAX_STACK
#: What overlayfs takes from the layers' extended attributes: "nofollow" neither makes nor follows, "off" follows.
NO_REDIRECTS = ((b"redirect_dir", b"nofollow"), (b"metacopy", b"off"))
REDIRECTS = ((b"redirect_dir", b"on"),)
F_DUPFD_CLOEXEC = Constant(1030, "F_DUPFD_CLOEXEC")

HINTS = {
    EINVAL: (
        "the kernel takes no such layers: one lies in another mount namespace or has mounts below that a "
        "user namespace"
        " may not uncover, upper and work are not in one file system, or upper is itself an overlay"
    ),
    EPERM: "overlayfs in a user namespace needs Linux 5.11; elsewhere CAP_SYS_ADMIN",
    ENODEV: "this kernel has no overlayfs",
    EBUSY: "upper or work is in use by another overlay",
    40: "layers within layers: the kernel stacks two overlays at most",
    ENOENT: "a layer does not exist",
    ENOTDIR: "a layer must be a directory",
}


@dataclass(frozen=True, repr=False)
class Overlay(Shown, ReversibleMount):
    """The directories ``lower``, the uppermost first, with what is written kept apart from them, at ``target``.

    ``upper`` and ``work`` are directories of the host, in one file system, where changes are kept; without them
    changes go to memory of the sandbox's own, at most ``size`` bytes in ``inodes`` files, and are gone with it.
    ``read_only``: no changes at all. Paths may have any characters, commas and colons included; a layer can also be a
    descriptor of a directory. Layers are not changed, and come without the mounts below them. nosuid and nodev
    always.

    ``beneath`` is a directory that all its paths lie below and that a program may have written to: see :class:`Bind`.

    ``idmap`` gives the files of ``lower`` other owners, as for :class:`Bind` (Linux 5.19); not together with ``upper``,
    which with ``work`` must be in one mount.

    What a layer says of itself in extended attributes (trusted.overlay.redirect, metacopy: "my contents are those of
    another file of the layers below") is not followed: whoever made a lower layer could show what another layer hides.
    ``redirects=True`` follows and makes such redirects, for layers that are all of your own making; not in a user
    namespace, where the kernel never does.

    Needs CAP_SYS_ADMIN, or a user namespace and Linux 5.11. Errors: EINVAL, with what the kernel may mean by it.

    :raises ConflictError: work without upper or the reverse, upper with read_only, redirects in a user namespace, one
        directory that is two layers.
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
        parse_size(self.size, "Overlay: size", smallest=PAGE)
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
        """What of the host a program may change through it."""
        for layer in (self.upper, self.work):
            if layer is not None:
                yield layer if isinstance(layer, int) else absolute(layer)

    def writes_at(self) -> Iterator[bytes]:
        """Where inside that is."""
        if self.upper is not None:
            yield self.place

    def tree(self, building: Building) -> tuple[Register, Iterable[Step]]:
        """An overlay, attached nowhere yet."""
        return (out := Register("overlay")), self._steps(building, out)

    def _steps(self, building: Building, out: Register) -> Iterator[Step]:
        layers: list[tuple[bytes, Register]] = []
        namespace = Register("map")
        if isinstance(self.idmap, IdMap):
            words = f"an id map for the layers of {text(self.place)}: {owners.text_of(self.idmap)}"
            yield Step(Phase.TREES, words, (owners.made(self.idmap, namespace),), hints=owners.HINTS)
        elif self._mapped:
            namespace = building.context.descriptor(self.idmap)  # type: ignore[arg-type, assignment]
        for source in self.lower:
            layers.append((b"lowerdir+", Register("lower")))
            if self._mapped:
                yield from _open_mapped(building, source, layers[-1][1], namespace, self.beneath)
            else:
                yield _open(building, source, layers[-1][1], "lower", self.beneath)
        if isinstance(self.idmap, IdMap):
            yield Step(Phase.TREES, "let go of the id map", (call("close", namespace),), needs=namespace)
        memory = Register("memory")
        own = self.upper is None
        if not own:
            for name, directory in (("upper", self.upper), ("work", self.work)):
                assert directory is not None
                layers.append((name.encode() + b"dir", Register(name)))
                yield _open(building, directory, layers[-1][1], name, self.beneath)
        else:
            names = [b"empty"] if self.read_only else [b"upper", b"work"]
            registers = [Register(name.decode()) for name in names]
            yield self._memory(building, memory, layers[0][1], list(zip(names, registers, strict=True)))
            keys = [b"lowerdir+"] if self.read_only else [b"upperdir", b"workdir"]
            layers += list(zip(keys, registers, strict=True))
        attached = [fd for _, fd in layers[: len(self.lower)]] if self._mapped else []
        if attached:
            # Before Linux 6.15 a layer must be attached somewhere; they stack, and go from the top.
            yield Step(Phase.ROOT, "the layers lie on the old root", tuple(map(on_top, attached)))
        yield self._mount(building, layers, out)
        ends: list[Op] = []
        for fd in reversed(attached):
            ends += [call("fchdir", fd), call("umount2", b".", MNT_DETACH)]
        ends += [call("close", fd) for _, fd in layers]
        if own:
            # The overlay holds on to it; its place on the old root was for the making only.
            ends += [call("fchdir", memory), call("umount2", b".", MNT_DETACH), call("close", memory)]
        yield Step(Phase.ROOT, "let go of the layers", tuple(ends))

    def _memory(
        self, building: Building, memory: Register, first: Register, directories: list[tuple[bytes, Register]]
    ) -> Step:
        limit = pages(parse_size(self.size))
        inodes = self.inodes or default_inodes(limit)
        options = [(b"size", b"%d" % limit), (b"nr_inodes", b"%d" % inodes), (b"mode", b"0700")]
        buffer = Buffer(STATX_SIZE, "stat")
        ops: list[Op] = [
            *new_file_system(b"tmpfs", memory, options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV),
            on_top(memory),  # before Linux 6.15 a layer must be attached somewhere
            stat(first, buffer),
        ]
        for name, fd in directories:
            ops += [call("mkdirat", memory, name, 0o755), call("openat", memory, name, O_PATH | O_CLOEXEC, 0, out=fd)]
            if name == b"upper":
                # The top directory of an overlay has the mode and owner of its upper layer's.
                if building.context.find(UserNamespace) is None:
                    ops.append(
                        call("fchownat", fd, b"", Load(buffer, STATX_UID, 4), Load(buffer, STATX_GID, 4), AT_EMPTY_PATH)
                    )
                ops.append(call("fchmodat", memory, name, Load(buffer, STATX_MODE, 4)))
        words = "an empty layer" if self.read_only else f"memory for changes: at most {limit} bytes in {inodes} files"
        return Step(Phase.ROOT, words, tuple(ops))

    def _mount(self, building: Building, layers: list[tuple[bytes, Register]], out: Register) -> Step:
        flags: Constant = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        old: Constant = MS_NOSUID | MS_NODEV
        if not self.exec:
            flags, old = flags | MOUNT_ATTR_NOEXEC, old | MS_NOEXEC
        if self.read_only:
            flags, old = flags | MOUNT_ATTR_RDONLY, old | MS_RDONLY
        user = building.context.find(UserNamespace) is not None
        if user and self.redirects:
            raise ConflictError("Overlay: in a user namespace the kernel follows no redirects: leave redirects out")
        fallback, end, fs = Label(), Label(), Register("overlay")
        # Layers by descriptor: Linux 6.13, and by O_PATH descriptor 6.15. Else by name, of the descriptor.
        older: dict[str, Any] = {"errors": (EINVAL, EBADF), "policy": "jump", "label": fallback}
        ops: list[Op] = [call("fsopen", b"overlay", FSOPEN_CLOEXEC, out=fs)]
        ops += [call("fsconfig", fs, FSCONFIG_SET_FD, key, 0, fd, **older) for key, fd in layers]
        following = REDIRECTS if self.redirects else NO_REDIRECTS
        ops += [call("fsconfig", fs, FSCONFIG_SET_STRING, key, value, 0) for key, value in following]
        if user:
            ops.append(call("fsconfig", fs, FSCONFIG_SET_FLAG, b"userxattr", 0, 0))
        ops += [
            call("fsconfig", fs, FSCONFIG_CMD_CREATE, 0, 0, 0),
            call("fsmount", fs, FSMOUNT_CLOEXEC, flags, out=out),
            call("close", fs),
            Test(0, 1, label=end),  # always jumps
            fallback,
            call("close", fs),
            *_mount_by_name(layers, old, user, following, out),
            end,
        ]
        words = f"overlay for {text(self.place)} of {len(self.lower)} layers"
        return Step(Phase.ROOT, words, tuple(ops), path=self.place, hints=HINTS)

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Open the layers while the caller's files are there; make the overlay, mount it."""
        out, steps = self.tree(building)
        yield from steps
        yield Step(
            Phase.ROOT,
            f"mount it on {text(self.place)}",
            (*building.attach(out, self.place), call("close", out)),
            path=self.place,
            hints=TARGET_HINTS,
        )


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
        ENOENT: "the layer does not exist",
        EACCES: "the caller may not reach the layer (root in a new user namespace has no power over others' files)",
        116: "what the descriptor stands for has been moved, removed, or covered by a mount since it was opened",
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


def _mount_by_name(
    layers: list[tuple[bytes, Register]],
    flags: Constant,
    user: bool,
    following: tuple[tuple[bytes, bytes], ...],
    out: Register,
) -> list[Op]:
    """mount(2) with the layers as /proc/self/fd/100 and on: names in which no character needs an escape."""
    ops: list[Op] = []
    data = b"userxattr" if user else b"index=off"
    data += b"".join(b",%s=%s" % option for option in following)
    digits: list[tuple[int, Register]] = []
    for key, words in ((b"lowerdir+", b",lowerdir="), (b"upperdir", b",upperdir="), (b"workdir", b",workdir=")):
        for index, fd in enumerate(fd for k, fd in layers if k == key):
            data += (b":" if index else words) + b"/proc/self/fd/"
            digits.append((len(data), fd))
            data += b"000"
    if len(data) >= PAGE:
        return [Test(0, 1, error=EINVAL)]  # mount(2) takes a page of options
    buffer = Buffer(data + b"\0", "options")
    for at, fd in digits:
        copy = Register("layer")
        ops += [
            call("fcntl", fd, F_DUPFD_CLOEXEC, 100, out=copy),
            Test(copy, 0, mask=~1023),  # below 1024
            Store(buffer, at, copy, 0),
            # The digits end with a NUL: put back what stands there.
            Store(buffer, at + 3, (data + b"\0")[at + 3], 1),
        ]
    place = Register("scratch")
    options = [(b"size", b"16384"), (b"nr_inodes", b"8"), (b"mode", b"0700")]
    return [
        *ops,
        *new_file_system(b"tmpfs", place, options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV),
        on_top(place),
        call("mkdirat", place, b"merged", 0o700),
        call("fchdir", place),
        call("mount", b"overlay", b"merged", b"overlay", flags, buffer),
        clone(place, b"merged", out, recursive=False),
        call("umount2", b".", MNT_DETACH),
        call("close", place),
    ]
