"""Single things in a root: files with given contents, directories, symbolic links; and what is covered or made read-
only.
"""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass, field
from errno import EEXIST, EINVAL, ENOENT, EROFS
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding
from isolate.engine.plan import Phase, Register, Step, Target, call
from isolate.kernel.checks import keywords
from isolate.kernel.constants import MOUNT_ATTR_RDONLY
from isolate.kernel.paths import StrOrBytesPath, inside, text
from isolate.mounts.building import CREATE
from isolate.mounts.calls import attributes, clone, read_only
from isolate.mounts.showing import Shown
from isolate.mounts.tmpfs import check_mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.mounts.building import Building

__all__ = ["Dir", "File", "Mask", "ReadOnly", "Symlink"]

LARGEST_FILE = 128 << 20  # a tape is at most 256 MiB
MASK_HINTS = {
    ENOENT: Finding("there is nothing to cover: a misspelt path?", "name what is there, or say optional=True"),
}
READ_ONLY_HINTS = {
    ENOENT: Finding("there is nothing there", "mount it before it is made read-only, or say optional=True"),
    EINVAL: Finding("there are mounts below that a user namespace may not uncover", "say recursive=True"),
}


@keywords
@dataclass(frozen=True, repr=False)
class File(Shown):
    """A file with these bytes at ``target``, as a mount of its own: what lies below is covered and not changed.

    ``data`` is bytes, or a str written as UTF-8, at most 128 MiB. The file belongs to the sandbox's root user and is in
    memory; ``read_only=False`` lets the sandbox write to it, within the same size.

    :param target: absolute path inside the sandbox.
    :param data: contents, at most 128 MiB.
    :param mode: permission bits.
    :param read_only: the sandbox cannot write to it.

    >>> box = Sandbox(UserNamespace(), Root(Bind("/", "/"), File("/etc/motd", "hello\\n")))
    >>> box.run(["cat", "/etc/motd"]).stdout
    b'hello\\n'
    """

    target: StrOrBytesPath
    data: bytes | str = field(repr=False)
    _: KW_ONLY
    mode: int = 0o644
    read_only: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "File: target"))
        data = self.data.encode() if isinstance(self.data, str) else self.data
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"File: data must be bytes or a str, not {type(data).__name__}")
        if len(data) > LARGEST_FILE:
            raise ValueError(f"File: data must be at most {LARGEST_FILE} bytes (Bind can show a larger file)")
        object.__setattr__(self, "data", bytes(data))
        check_mode(self.mode, "File: mode")

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Write it in the scratch, mount it from there."""
        data = self.data
        assert isinstance(data, bytes)
        fd, tree, name = Register("file"), Register("tree"), building.next_name()
        scratch = building.scratch_root
        write = [call("write", fd, data, len(data), expect=len(data))] if data else []
        building.scratch(
            len(data),
            f"write {len(data)} bytes for {text(self.place)}",
            (
                call("openat", scratch, name, CREATE, 0o600, out=fd),
                *write,
                call("fchmod", fd, self.mode),
                call("close", fd),
            ),
        )
        change = [] if self.read_only else [attributes(tree, 0, clear=MOUNT_ATTR_RDONLY)]
        yield Step(
            Phase.ROOT,
            f"mount the file {text(self.place)}",
            (
                clone(scratch, name, tree, recursive=False),
                *change,
                *building.attach(tree, self.place, kind="file"),
                call("close", tree),
            ),
            # The next program would find what this one writes there.
            template=building.kept(self.place) if self.read_only else None,
            path=self.place,
        )


@keywords
@dataclass(frozen=True, repr=False)
class Dir(Shown):
    """A directory at ``target``, made with ``mode`` if it is not there; one that is there stays as it is.

    It is made in what lies at that place: in the sandbox's own root as a rule, or in a writable source of the host's,
    where it stays.

    Needs the privileges of the :class:`Root` that it is in, and the right to write at that place. Errors: EROFS where
    that is read-only, ENOTDIR where something on the way is no directory. Source: mkdirat(2), openat2(2).

    :param target: absolute path inside the sandbox.
    :param mode: permission bits of a directory that is made.

    >>> Sandbox(UserNamespace(), Root(Bind("/usr"), Dir("/srv/empty"))).check()
    """

    target: StrOrBytesPath
    _: KW_ONLY
    mode: int = 0o755

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "Dir: target"))
        check_mode(self.mode, "Dir: mode")
        if self.target == b"/":
            raise ValueError("Dir: the root itself is there already")

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Make it by the root's descriptor."""
        path, fd = inside(self.target), Register("directory")
        building.made[path] = None
        yield Step(
            Phase.ROOT,
            f"directory {text(path)}",
            (Target(building.root, path, fd, make="dir", mode=self.mode), call("close", fd)),
            template=building.kept(path),
            path=path,
        )


@keywords
@dataclass(frozen=True, repr=False)
class Symlink(Shown):
    """A symbolic link at ``target`` that says ``to``, which may be relative and need not exist.

    Programs follow it inside the sandbox, so an absolute ``to`` is a path inside. It is made in what lies at that
    place, as a :class:`Dir` is.

    Needs the privileges of the :class:`Root` that it is in, and the right to write at that place. Errors: EEXIST if
    something is there already, EROFS where the place is read-only. Source: symlinkat(2), openat2(2).

    :param to: what the link says.
    :param target: absolute path inside the sandbox.

    >>> Sandbox(UserNamespace(), Root(Bind("/usr"), Symlink("usr/bin", "/bin"))).check()
    """

    to: StrOrBytesPath
    target: StrOrBytesPath

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "Symlink: target"))
        if not isinstance(self.to, (str, bytes, os.PathLike)):
            raise TypeError(f"Symlink: to must be a str, bytes or os.PathLike, not {self.to!r}")
        to: bytes = os.fsencode(self.to)
        if not to or b"\0" in to or len(to) > 4095:
            raise ValueError(f"Symlink: to must have 1 to 4095 bytes and no NUL: {to[:80]!r}")
        object.__setattr__(self, "to", to)
        if self.target == b"/":
            raise ValueError("Symlink: the root itself cannot be one")

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Make it in its directory, by descriptor."""
        path, parent = inside(self.target), Register("directory")
        to: bytes = os.fsencode(self.to)
        building.made[path] = to
        yield Step(
            Phase.ROOT,
            f"symbolic link {text(path)} to {text(to)}",
            (
                Target(building.root, path, parent, parent=True, make="dir"),
                call("symlinkat", to, parent, path.rpartition(b"/")[2]),
                call("close", parent),
            ),
            template=building.kept(path, foreign=True),
            path=path,
            hints={
                EEXIST: "something is there already",
                EROFS: "it would be made in a read-only mount",
            },
        )


@keywords
@dataclass(frozen=True, repr=False)
class Mask(Shown):
    """Cover what is at ``target``: a directory looks empty, a file is empty, both are read-only.

    A path that does not exist is an error, unless ``optional``. A symbolic link inside is followed, within the root.

    :param target: absolute path inside the sandbox.
    :param optional: a path that does not exist is no error.

    >>> Sandbox(UserNamespace(), Root(Bind("/", "/"), Mask("/usr"))).run(["/usr/bin/env"]).ok
    Traceback (most recent call last):
    isolate.errors.SetupError: ...
    """

    target: StrOrBytesPath
    _: KW_ONLY
    optional: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "Mask: target"))
        if self.target == b"/":
            raise ValueError("Mask: the root cannot be covered")

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Mount something empty over it."""
        path = inside(self.target)
        ops = building.cover(building.root, path, symlinks=True, missing="ignore" if self.optional else "error")
        split = building.kept(path)
        yield Step(Phase.ROOT, f"cover {text(path)}", tuple(ops), path=path, hints=MASK_HINTS, template=split)


@keywords
@dataclass(frozen=True, repr=False)
class ReadOnly(Shown):
    """Make what is at ``target`` read-only from here on, with the mounts below unless ``recursive=False``.

    A path that does not exist is an error, unless ``optional``. ``ReadOnly("/")`` is the root itself, once every entry
    is in place, whatever stands behind it in the list: so targets can still be made in a writable one. With
    ``recursive`` that is all of its mounts; ``recursive=False`` leaves those below as they are.

    :param target: absolute path inside the sandbox.
    :param recursive: with the mounts below.
    :param optional: a target that does not exist is left out.

    >>> box = Sandbox(UserNamespace(), Root(Bind("/", "/"), Tmpfs("/tmp"), ReadOnly("/tmp")))
    >>> box.run(["touch", "/tmp/x"]).ok
    False
    """

    target: StrOrBytesPath
    _: KW_ONLY
    recursive: bool = True
    optional: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "ReadOnly: target"))

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Mount it over itself; the root at the end."""
        path = inside(self.target)
        if path == b"/":
            words = "the root is read-only" + (", with all its mounts" if self.recursive else "")
            building.at_end(Step(Phase.ROOT, words, (read_only(building.root, recursive=self.recursive),), path=path))
            return
        missing = "ignore" if self.optional else "error"
        ops = building.freeze(building.root, path, symlinks=True, recursive=self.recursive, missing=missing)
        words, split = f"make {text(path)} read-only", building.kept(path)
        yield Step(Phase.ROOT, words, tuple(ops), path=path, hints=READ_ONLY_HINTS, template=split)
