"""The source of a build's files: a directory with its ``.dockerignore``, or the tree of an image."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from isolate.build.errors import BuildError
from isolate.build.ignore import LARGEST, Ignore
from isolate.images.archive.entry import Entry
from isolate.images.errors import LayerError
from isolate.images.pack.stack import Stack
from isolate.kernel.checks import keywords
from isolate.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from isolate.images.facts import Fact, Facts
    from isolate.kernel.paths import StrOrBytesPath
    from isolate.namespaces.ids import IdMap

__all__ = ["Context", "Files"]

_CAPABILITY: Final = b"security.capability"
_DEEPEST: Final = 256


@keywords
class Context:
    """A directory whose files a build may copy.

    No symbolic link is followed out of the directory: a link that leads outside leads nowhere. The build does not see
    files that ``.dockerignore`` names.

    :param path: the directory.
    :param ignore: patterns instead of those in ``.dockerignore``; ``()`` for none.
    :raises BuildError: there is no such directory. :raises IgnoreError: a pattern is malformed.
    """

    def __init__(self, path: StrOrBytesPath, *, ignore: Iterable[str] | None = None) -> None:
        self.path: str = os.path.abspath(os.fsdecode(path))
        if not os.path.isdir(self.path):
            raise BuildError(f"the context {self.path} is no directory")
        self._given = None if ignore is None else Ignore(tuple(ignore))

    def __repr__(self) -> str:
        return f"Context({self.path!r})"

    def open(self) -> Files:
        """The files, to be closed."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return Files((fd,), self._given if self._given is not None else _read_ignore(fd))
        except BaseException:
            os.close(fd)
            raise


def _read_ignore(top: int) -> Ignore:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(".dockerignore", flags, dir_fd=top)
    except FileNotFoundError:
        return Ignore()
    except OSError as error:
        raise BuildError(f".dockerignore cannot be read: {error.strerror}") from None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BuildError(".dockerignore is no regular file")
        return Ignore.parse(file.read(LARGEST + 1))


def _of_root(value: bytes) -> bytes:
    """Capabilities of a file, those of a user namespace (version 3) as those of the image's root (version 2).

    What an ordinary user's store unpacks has the id of whom it belongs to, and root's store has none.
    """
    return value[:3] + b"\2" + value[4:20] if len(value) == 24 and value[3] == 3 else value


def _unreadable(path: bytes) -> BuildError:
    return BuildError(
        f"/{os.fsdecode(path)} may not be read by the user who builds: change its mode, or build as root, or in a store"
        " with a range of ids (Store(path, map=IdMap.subordinate()))"
    )


class Files(Closing):
    """Trees, the uppermost first, looked up beneath their top.

    Paths have no slash at either end; ``b""`` is the top.
    """

    def __init__(
        self,
        tops: Sequence[int],
        ignore: Ignore | None = None,
        *,
        facts: Sequence[Facts] = (),
        contents: int | None = None,
        ids: IdMap | None = None,
    ) -> None:
        """``ids``: the map under which the owners are those of an image; None: root owns all, as in a context."""
        self._tops = tops
        self._ids = ids
        self._ignore = ignore or Ignore()
        self.stack: Stack = Stack(tops, facts, contents, devices=True)

    def close(self) -> None:
        """Let go of the descriptors."""
        self.stack.close()
        for fd in self._tops:
            os.close(fd)

    def ignored(self, path: bytes) -> bool:
        """Whether the file is left out."""
        return self._ignore.matches(os.fsdecode(path))

    def left_out(self, path: bytes) -> bool:
        """Whether there is nothing: a directory is there, too, where a pattern takes back in what is below it."""
        if not self.ignored(path):
            return False
        found = self.look(path) if self._ignore.has_exceptions else None
        return found is None or not stat.S_ISDIR(found.st_mode) or next(self.walk(path), None) is None

    def refuse_ignored(self, path: bytes) -> None:
        """Raise a BuildError for a file that is left out."""
        if path and self.left_out(path):
            raise BuildError(f"/{os.fsdecode(path)}: it is there, but .dockerignore leaves it out")

    def followed(self, path: bytes) -> bytes:
        """As :meth:`real`, for a source: a link to a file that is left out leads to nothing either."""
        found = self.real(path)
        self.refuse_ignored(found)
        return found

    def look(self, path: bytes) -> os.stat_result | None:
        """The file at a path, a link for itself; None where nothing is."""
        try:
            found = self.stack.lookup(path)
        except (NotADirectoryError, FileNotFoundError):
            return None
        except OSError as error:
            raise BuildError(f"{os.fsdecode(path)}: {error.strerror}") from None
        return found[1] if found is not None else None

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory, in the order of their bytes."""
        try:
            return sorted(self.stack.names(path))
        except PermissionError:
            raise _unreadable(path) from None

    def link(self, path: bytes) -> bytes:
        """The target of a symbolic link."""
        found = self.stack.lookup(path)
        assert found is not None
        parent, _, base = path.rpartition(b"/")
        return os.readlink(base, dir_fd=found[0].directory(parent))

    def read(self, path: bytes) -> int:
        """The descriptor of a regular file, to read."""
        found = self.stack.lookup(path)
        assert found is not None
        tree = found[0]
        try:
            fd = tree.open(path)
        except PermissionError:
            raise _unreadable(path) from None
        try:
            return tree.contents_of(fd, path)
        except LayerError as error:
            os.close(fd)
            raise BuildError(f"/{os.fsdecode(path)}: {error.rule}") from None

    def attributes(self, path: bytes, fd: int | None = None) -> dict[bytes, bytes]:
        """The extended attributes that a file, which is open as ``fd``, or a directory brings into an image.

        ``user.*`` and capabilities; what else an image had is with its facts. Labels of this host stay here.

        :raises BuildError: overlayfs's own, which say that the contents are elsewhere.
        """
        row = self.stack.lookup(path)
        assert row is not None
        tree = row[0]
        own = None
        try:
            if fd is not None and tree.contents is not None:
                fd = own = tree.open(path)  # the open one may be that of its contents alone
            held = tree.attributes(tree.directory(path) if fd is None else fd)
        except LayerError as error:
            raise BuildError(f"/{os.fsdecode(path)}: {error.rule}") from None
        finally:
            if own is not None:
                os.close(own)
        found = {name: value for name, value in held.items() if name.startswith(b"user.")}
        if _CAPABILITY in held:
            found[_CAPABILITY] = _of_root(held[_CAPABILITY])
        fact = self._fact(path)
        return found if fact is None else {**found, **fact.xattrs}

    def _fact(self, path: bytes) -> Fact | None:
        row = self.stack.lookup(path)
        facts = row[0].facts if row is not None else None
        fact = facts.get(path) if facts is not None else None
        return facts.get(fact.same) if facts is not None and fact is not None and fact.same is not None else fact

    def device(self, path: bytes) -> Entry | None:
        """The entry of a device of an image, which its tree does not hold; None for what is none, or of a context."""
        fact = self._fact(path)
        if fact is None or fact.kind is None:
            return None
        return Entry(path, fact.kind, mode=fact.mode or 0, device=fact.device or (0, 0), xattrs=dict(fact.xattrs))

    def owner(self, path: bytes, found: os.stat_result) -> tuple[int, int]:
        """The owner of what was found at a path, as the image has it."""
        if self._ids is None:
            return 0, 0
        fact = self._fact(path)
        uid, gid = self._ids.inside(found.st_uid, found.st_gid)
        if fact is not None:  # what the tree cannot hold, be it one of the two
            uid, gid = (uid if fact.uid is None else fact.uid), (gid if fact.gid is None else fact.gid)
        return uid or 0, gid or 0

    def same(self, path: bytes) -> tuple[int, int, int]:
        """The identity of a file, equal for all its hard links: the tree and the inode.

        The tree too: where a store shares files between layers, equal files of two layers are one inode.
        """
        row = self.stack.lookup(path)
        assert row is not None
        return row[0].top, row[1].st_dev, row[1].st_ino

    def real(self, path: bytes, *, missing: bool = False) -> bytes:
        """The path with every link followed, as it would be with this tree as the root.

        :param missing: whether parts of it may not be there.
        :raises BuildError: too many links, a part that is not there or is no directory, or a link that is left out.
        """
        try:
            return self.stack.real(path, missing=missing, passing=self.refuse_ignored)
        except ValueError as error:
            raise BuildError(str(error)) from None
        except OSError as error:
            raise BuildError(f"{os.fsdecode(path)}: {error.strerror}") from None

    def walk(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        """Everything below a directory that is not ignored, parents first, in the order of the bytes."""
        left = [b"/".join([path, name]) if path else name for name in reversed(self.names(path))]
        while left:
            each = left.pop()
            found = self.look(each)
            if found is None:
                continue
            if each.count(b"/") > _DEEPEST:
                raise BuildError(f"{os.fsdecode(each[:200])}…: more than {_DEEPEST} directories deep")
            directory = stat.S_ISDIR(found.st_mode)
            ignored = self.ignored(each)
            if not ignored:
                yield each, found
            if directory and (not ignored or self._ignore.has_exceptions):
                left += [each + b"/" + name for name in reversed(self.names(each))]
