"""Files and directories of the host, shown inside: bind mounts (mount(2), open_tree(2), mount_setattr(2))."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from errno import EACCES, EINVAL, ENOENT, ENOTDIR, EPERM, ESTALE
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from isolate.engine.beneath import check_beneath, led_astray, open_beneath, place_of, writable_sources
from isolate.engine.finding import Finding
from isolate.engine.plan import Buffer, Label, Load, Op, Phase, Register, Split, Step, Store, Test, call
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.constants import (
    AT_FDCWD,
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME,
    NOTHING,
    Constant,
)
from isolate.kernel.paths import StrOrBytesPath, absolute, inside, text
from isolate.mounts import owners
from isolate.mounts.building import MOVED
from isolate.mounts.calls import STATX_DEV, STATX_INO, STATX_SIZE, attributes, clone, stat
from isolate.mounts.reversible import ReversibleMount
from isolate.mounts.showing import Shown
from isolate.namespaces.ids import IdMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from isolate.engine.plan import Context, Slot
    from isolate.mounts.building import Building

__all__ = ["Bind"]

ATIMES: dict[str, Constant] = {
    "noatime": MOUNT_ATTR_NOATIME,
    "relatime": MOUNT_ATTR_RELATIME,
    "strictatime": MOUNT_ATTR_STRICTATIME,
}


class HasFileno(Protocol):
    """A file, a socket: what has a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


Source: TypeAlias = "StrOrBytesPath | int | HasFileno"


def descriptor_of(value: object) -> int | None:
    """The number, if it is a descriptor or has one."""
    if isinstance(value, bool):
        raise TypeError("a source must be a path or a descriptor, not a bool")
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"not a descriptor: {value}")
        return value
    fileno = getattr(value, "fileno", None)
    return None if fileno is None else int(fileno())


@keywords
@dataclass(frozen=True, repr=False)
class Bind(Shown, ReversibleMount):
    """Show a file or directory of the host at ``target`` (where the host has it, unless given).

    ``source`` is an absolute path, looked up with the caller's rights when the sandbox starts, or a descriptor (which
    must stay open as long as the sandbox is used). The target is made where missing, a directory or a file like the
    source.

    ``read_only``: nothing below can be written, created or removed, mounts included. ``recursive``: the mounts below
    the source come along, with the same attributes. ``suid``, ``dev`` and ``exec`` say whether set-id bits, device
    nodes and programs work; ``symlinks=False``: no symbolic link below is followed (nosymfollow); ``atime`` is
    ``"noatime"``, ``"relatime"``, ``"strictatime"`` or None, for as the host has it. ``optional``: a source that does
    not exist is left out, and ``Result.applied`` says False of the root. ``idmap`` gives the files other
    owners (Linux 5.12, on file systems that can; for root on the host only): an :class:`~isolate.IdMap` from the ids on
    the file system to those of the host that they look like, the descriptor of a user namespace with such a map, or
    True: that of the sandbox's own user namespace, so that each file has the same owner inside as on its file system.
    If root starts a program with an unprivileged id, a writable source that belongs to root and is not writable for
    everybody gets an id map by default: it looks as if it belonged to the program, and files made there belong to root.
    ``idmap=False`` leaves that out. ``beneath`` is a directory that contains the source and that a program may have
    written to: the source is then opened from there, never outside of it and never through a symbolic link. A source
    below another writable source of the same sandbox is opened in this way in any case.

    A restriction that the host's mount has stays. Mounts are private: mounts that the host makes later do not show.
    In a user namespace the kernel refuses ``recursive=False`` where the source has mounts below (EINVAL): it could
    uncover what they hide.

    :param source: absolute path of the host, or a descriptor.
    :param target: absolute path inside; the source's own unless given.
    :param read_only: nothing below can be changed.
    :param recursive: with the mounts below.
    :param suid: set-user-ID bits work.
    :param dev: device nodes work.
    :param exec: programs can be executed.
    :param symlinks: symbolic links below are followed.
    :param atime: ``"noatime"``, ``"relatime"``, ``"strictatime"``; None is the host's.
    :param optional: leave out a source that does not exist.
    :param idmap: owners of the files: an :class:`~isolate.IdMap`, True or False.
    :param beneath: directory that the source is opened beneath, through no link.

    >>> Sandbox(UserNamespace(), Root(Bind("/", "/"), Bind("/usr", "/mnt"))).run(["ls", "/mnt/bin/env"]).stdout
    b'/mnt/bin/env\\n'
    """

    source: Source
    target: StrOrBytesPath | None = None
    _: KW_ONLY
    read_only: bool = True
    recursive: bool = True
    suid: bool = False
    dev: bool = False
    exec: bool = True
    symlinks: bool = True
    atime: str | None = None
    optional: bool = False
    idmap: IdMap | int | None = None
    beneath: StrOrBytesPath | None = None

    def __post_init__(self) -> None:
        fd = descriptor_of(self.source)
        object.__setattr__(self, "source", absolute(self.source, "Bind: source") if fd is None else fd)
        if self.target is None:
            if fd is not None:
                raise TypeError("Bind: a source that is a descriptor needs a target")
            object.__setattr__(self, "target", inside(self.source, "Bind: source, also the target"))
        else:
            object.__setattr__(self, "target", inside(self.target, "Bind: target"))
        if self.atime is not None and self.atime not in ATIMES:
            raise ValueError(f"Bind: atime must be one of {', '.join(ATIMES)} or None, not {self.atime!r}")
        object.__setattr__(self, "idmap", check_idmap(self.idmap, "Bind"))
        if self.beneath is not None:
            object.__setattr__(self, "beneath", check_beneath(self.source, self.beneath, "Bind"))

    def writes_to(self) -> Iterator[bytes | int]:
        """The directories of the host that a program may change through this entry."""
        if not self.read_only:
            yield self.source if isinstance(self.source, int) else absolute(self.source)

    def writes_at(self) -> Iterator[bytes]:
        """The paths inside of the directories in :meth:`writes_to`."""
        if not self.read_only:
            yield self.place

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    def flags(self) -> tuple[Constant, Constant]:
        """The attributes to set on the mount, and those to clear first."""
        wanted: Constant = NOTHING
        for refused, flag in (
            (self.read_only, MOUNT_ATTR_RDONLY),
            (not self.suid, MOUNT_ATTR_NOSUID),
            (not self.dev, MOUNT_ATTR_NODEV),
            (not self.exec, MOUNT_ATTR_NOEXEC),
            (not self.symlinks, MOUNT_ATTR_NOSYMFOLLOW),
            (_is_descriptor(self.idmap), MOUNT_ATTR_IDMAP),
        ):
            wanted = wanted | flag if refused else wanted
        if self.atime is None:
            return wanted, NOTHING
        return wanted | ATIMES[self.atime], MOUNT_ATTR__ATIME

    def tree(self, building: Building) -> tuple[Register, Iterable[Step]]:
        """A detached copy of the source's mounts, restricted before anybody inside can see it."""
        return self._opened(building)[:2]

    def _opened(self, building: Building) -> tuple[Register, list[Step], Buffer]:
        tree, kind, end = Register("tree"), Buffer(STATX_SIZE, "stat"), Label()
        context = building.context
        # Only root on the host can mount by descriptor with an id map, and only outside of the new namespaces.
        ids = self._ids(context)
        outside = context.privileged and (isinstance(self.source, int) or ids is not None)
        ops: list[Op] = []
        hints = self._hints(ids is not None)
        below = None
        if isinstance(self.source, int):
            fd = context.descriptor(self.source)
            source, path = f"descriptor {self.source}", None
            if outside:
                ops.append(clone(fd, b"", tree, recursive=self.recursive))
            else:
                ops += by_name(fd, lambda name: clone(AT_FDCWD, name, tree, recursive=self.recursive), tree)
        else:
            path = absolute(self.source)
            source = text(path)
            policy: dict[str, Any] = (
                {"errors": (ENOENT, ENOTDIR), "policy": "skip", "label": end} if self.optional else {}
            )
            below = place_of(path, writable_sources(context), self._beneath())
            if below is None:
                ops.append(clone(AT_FDCWD, path, tree, recursive=self.recursive, **policy))
            else:
                found = Register("source")
                ops += open_beneath(*below, found, result=tree, **policy)
                ops += [clone(found, b"", tree, recursive=self.recursive), call("close", found)]
                hints = {**hints, **led_astray(below[0])}
        flags, clear = self.flags()
        buffer = Buffer(32, "attributes")
        change = attributes(tree, flags, clear=clear, recursive=self.recursive, private=True, buffer=buffer)
        if isinstance(ids, int):
            ops.append(Store(buffer, 24, context.descriptor(ids), 8))
        elif ids is not None:
            namespace = Register("map")
            ops += [owners.made(ids, namespace), *owners.given(tree, namespace, recursive=self.recursive)]
            ops.append(call("close", namespace))
        ops += [change, stat(tree, kind), end]
        how = "read-only" if self.read_only else "writable"
        if isinstance(ids, IdMap):
            how += f", with the owners {owners.text_of(ids)}"
        words = f"open {source}{' with the mounts below' if self.recursive else ''}, {how}"
        phase = Phase.TREES if outside else Phase.SOURCES
        split = None
        if path is not None and below is None and not outside and ids is None:
            pinned = Buffer(STATX_SIZE, "pinned", report=True)
            split = Split(build=(*ops[:-1], stat(tree, pinned), end), sources=((path, pinned),))
        steps = [Step(phase, words, tuple(ops), path=path, hints=hints, template=split)]
        if outside:
            steps.append(Step(Phase.ADOPT, f"let go of {source} outside", (call("close", tree),), needs=tree))
        return tree, steps, kind

    def _beneath(self) -> bytes | None:
        return None if self.beneath is None else absolute(self.beneath)

    def _ids(self, context: Context) -> IdMap | int | None:
        if self.idmap is not None:
            return owners.chosen(context, self.idmap)
        source = self.source if isinstance(self.source, int) else absolute(self.source)
        return owners.for_the_program(context, source, writable=not self.read_only)

    def _hints(self, mapped: bool) -> dict[int, Finding]:
        hints = {
            EACCES: Finding(
                "the caller may not reach the source (root in a new user namespace has no power over others' files)"
            ),
            EPERM: Finding(
                "cloning a mount needs CAP_SYS_ADMIN in the mount namespace's user namespace",
                "be root, or add UserNamespace()",
            ),
            EINVAL: Finding(
                "the source's mount is unbindable, or belongs to another mount namespace", "name another place of it"
            ),
            ESTALE: MOVED,
        }
        if not self.recursive:
            hints[EINVAL] = Finding(
                "the source has mounts below that a user namespace may not uncover, or is unbindable",
                "say recursive=True",
            )
        if mapped:
            hints |= owners.HINTS
        if _is_descriptor(self.idmap):
            hints[EINVAL] = Finding(
                "this file system cannot be mounted with an id map, or the user namespace has no map yet",
                "write the namespace's map first, or leave idmap out",
            )
        if self.atime is not None:
            hints[EPERM] = Finding(
                "a user namespace may not change the atime that the host's mount is locked to", "leave atime=None"
            )
        return hints

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Open the source while the caller's files are there; mount it in the new root."""
        tree, steps, kind = self._opened(building)
        yield from steps
        yield building.mount(tree, self.place, kind=kind, needs=tree, template=building.kept(self.place, foreign=True))


def _is_descriptor(idmap: object) -> bool:
    return is_int(idmap)


def check_idmap(value: object, what: str) -> Any:
    """A descriptor, a map, None or a bool."""
    if value is None or isinstance(value, (bool, IdMap)):
        return value
    fd = descriptor_of(value)
    if fd is None:
        raise TypeError(f"{what}: idmap must be an IdMap or the descriptor of a user namespace, not {value!r}")
    return fd


def by_name(fd: Slot, opening: Callable[[Buffer], Op], out: Register) -> list[Op]:
    """Open what a descriptor of another mount namespace stands for: by its name here, and then compared."""
    name, wanted, found = Buffer(4096, "name"), Buffer(STATX_SIZE, "wanted"), Buffer(STATX_SIZE, "found")
    return [
        call("readlinkat", AT_FDCWD, b"/proc/self/fd/%d" % fd.number, name, 4095),
        opening(name),
        stat(fd, wanted),
        stat(out, found),
        Test(Load(found, STATX_INO), Load(wanted, STATX_INO), error=ESTALE),
        Test(Load(found, STATX_DEV), Load(wanted, STATX_DEV), error=ESTALE),
    ]
