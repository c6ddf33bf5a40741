"""``Workspace``: a bounded directory that programs can write and the caller can read afterwards."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from isolate.attributes.credentials import Credentials
from isolate.errors import ConflictError, SetupError
from isolate.kernel import checks
from isolate.kernel.checks import is_int
from isolate.kernel.closing import Closing
from isolate.kernel.paths import inside
from isolate.kernel.trees import MOST, remove_here, walk
from isolate.mounts.bind import Bind
from isolate.namespaces.ids import IdMap, is_host_root
from isolate.namespaces.part import UserNamespace
from isolate.sandbox.containers.acting import Actor
from isolate.sandbox.containers.beneath import Opened, open_beneath
from isolate.sandbox.containers.bounds import Bounds
from isolate.sandbox.containers.files import Files
from isolate.sandbox.containers.with_files import WithFiles
from isolate.sandbox.project import Project
from isolate.sandbox.volumes import image_volume, memory_volume

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.engine.plan import Context, Register, Step
    from isolate.kernel.paths import StrOrBytesPath
    from isolate.mounts.building import Building

__all__ = ["Usage", "Workspace"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_TREE_CLONE, _AT_EMPTY_PATH = 1, 0x1000
_ROUNDS = 10  # of removing what a program makes again
_HOLDS = ("auto", "memory", "quota", "image", "measured")
_FILES, _DEPTH = 10_000_000, MOST  # what is looked at when nobody says how many there may be


@dataclass(frozen=True)
class Usage:
    """The use of a workspace."""

    #: Bytes of all files together, as the file system allots them, and how many files and directories there are.
    size: int
    files: int
    #: Whether that is within what was allowed.
    within: bool


@checks.keywords
class Workspace(WithFiles, Closing):
    """A directory of the caller's that programs find at ``target`` and may write, whoever they are inside.

    .. code-block:: python

        with Workspace(size="64M", contents={"main.py": code}) as work:
            box = presets.untrusted(work)
            box.run(["python3", "main.py"], cwd="/workspace", timeout=5)
            print(work.read("out.txt"), work.usage())

    It is an entry for a :class:`~isolate.Root`, and goes into presets as any other. ``contents`` are there from the
    start: a mapping of paths to bytes or str, or a directory, whose files are copied. ``read``, ``write``,
    ``put``, ``get`` and ``list`` are those of a :class:`~isolate.Container`, with paths from the workspace
    on: no symbolic link that a program left is followed, no FIFO or device is opened. Whatever modes a program left on
    files of the caller's, they are read.

    ``hold`` says who holds ``size`` and ``files``:

    ``"memory"``
        The kernel: the workspace is a tmpfs, which shows in nobody's mount table. For root; Linux 6.15.
    ``"quota"``
        The kernel: it is a directory, ``path`` or a temporary one, with a project of its own in a file system that has
        quotas for projects (ext4 and xfs, mounted with prjquota). For root; the programs need a user namespace.
    ``"image"``
        The kernel: it is an ext4 in a file without a name. For root, with mkfs.ext4 and a loop device; Linux 6.15.
    ``"measured"``
        Nobody: it is a directory of a file system, ``path`` or a temporary one, and :meth:`usage` tells.
    ``"auto"``
        Without a ``path`` memory, else a quota, each where it can be had; measured where neither can.

    :attr:`held` is which it is. A context manager: at the end of the block a temporary workspace is removed.

    :param path: directory of the caller's; None makes one in memory or on disk.
    :param size: limit in bytes.
    :param files: limit of files.
    :param target: absolute path inside the sandbox.
    :param contents: what is there from the start.
    :param hold: how the limits are held.

    >>> with Workspace(size="1M", contents={"in.txt": "hello"}) as work:
    ...     presets.untrusted(work).run(["cat", "/workspace/in.txt"]).stdout
    b'hello'
    """

    _PART: ClassVar[str] = "Workspace"

    def __init__(
        self,
        path: StrOrBytesPath | None = None,
        *,
        size: int | str = "1G",
        files: int | str = "100k",
        target: StrOrBytesPath = "/workspace",
        contents: Mapping[str, str | bytes] | StrOrBytesPath | None = None,
        hold: str = "auto",
    ) -> None:
        checks.choice("Workspace: hold", hold, _HOLDS)
        if hold in ("memory", "image") and path is not None:
            raise ValueError(f"Workspace: a path is a directory of some file system; hold={hold!r} needs none")
        self.size: int = checks.size("Workspace: size", size, 4096)
        self.files: int = _count(files)
        self.target: str = os.fsdecode(inside(target, "Workspace: target"))
        self.path: str | None = None
        self._made: str | None = None
        self._mount = self._fd = -1
        self._project: Project | None = None
        self._held = "measured"
        self._own = (0, 0)  # bytes and files that its file system has for itself
        try:
            if path is None and hold in ("auto", "memory"):
                self._in_memory(required=hold == "memory")
            elif hold == "image":
                self._in_an_image()
            if self._mount < 0:
                self._on_disk(path)
            self._open()
            if self._mount < 0 and hold in ("auto", "quota"):
                self._by_quota(required=hold == "quota")
            if contents is not None:
                if not isinstance(contents, (Mapping, str, bytes, os.PathLike)):
                    raise TypeError(f"Workspace: contents must be a dict of paths, or a directory, not {contents!r}")
                self.put(contents)
        except BaseException:
            self.close()
            raise

    def _in_memory(self, *, required: bool) -> None:
        if not is_host_root():
            if required:
                raise _only_root("make a tmpfs", "hold='measured', or a Container with a Tmpfs of its own")
            return
        mount = memory_volume(self.size, self.files)
        if mount >= 0:
            self._mount, self._held = mount, "memory"
        elif required:
            raise SetupError(
                -mount,
                "make a tmpfs that several sandboxes can show",
                part="Workspace",
                cause="a mount that is attached nowhere can be shown from Linux 6.15 on",
                remedy="hold='measured'",
            )

    def _in_an_image(self) -> None:
        if not is_host_root():
            raise _only_root("mount a file system", "hold='measured'")
        self._mount, self._held = image_volume(self.size, self.files), "image"

    def _by_quota(self, *, required: bool) -> None:
        """A project for the directory, where its file system has them."""
        if not is_host_root():
            if required:
                raise _only_root("set a quota by project", "hold='measured'")
            return
        try:
            self._project = Project.of(self._fd, self.size, self.files)
            self._held = "quota"
        except SetupError:
            if required:
                raise

    def _on_disk(self, path: StrOrBytesPath | None) -> None:
        if path is None:
            self._made = tempfile.mkdtemp(prefix="isolate-workspace-")
            path = self._made
        self.path = os.path.abspath(os.fsdecode(path))

    def _open(self) -> None:
        if self._mount >= 0:
            self._fd = os.open(".", _DIRECTORY, dir_fd=self._mount)
            told = os.fstatvfs(self._fd)
            self._own = (told.f_blocks - told.f_bfree) * told.f_frsize, told.f_files - told.f_ffree
        else:
            assert self.path is not None
            self._fd = os.open(self.path, _DIRECTORY)

    @property
    def held(self) -> str:
        """How its size is limited: by the kernel ("memory", "quota", "image"), or not ("measured", :meth:`usage`)."""
        return self._held

    def __repr__(self) -> str:
        return f"<Workspace {self.path or 'in memory'} at {self.target}, {self.held}>"

    # ---- an entry of a root --------------------------------------------------------------------------------------

    def _bind(self, context: Context | None = None) -> Bind:
        if self._fd < 0:
            raise ValueError("the workspace is closed")
        source: Any = self._mount if self._mount >= 0 else self.path
        bind = Bind(source, self.target, read_only=False)
        if context is not None and self._project is not None and context.find(UserNamespace) is None:
            raise ConflictError(
                "Workspace: its size is held by a quota of its project, which a file's owner can leave outside of a "
                "user namespace: add UserNamespace(), or take hold='memory'"
            )
        if context is None or not context.privileged or context.find(UserNamespace) is not None:
            return bind  # a user namespace brings its map: see isolate.mounts.owners
        who = context.find(Credentials)
        owner = os.fstat(self._fd)
        if who is None or who.uid in (None, owner.st_uid) or not is_host_root():
            return bind
        gid = owner.st_gid if who.gid is None else who.gid
        ids = IdMap.single(owner.st_uid, owner.st_gid, host_uid=who.uid, host_gid=gid)
        return dataclasses.replace(bind, idmap=ids)

    @property
    def place(self) -> bytes:
        """Its target."""
        return os.fsencode(self.target)

    def steps_in(self, building: Building) -> Iterable[Step]:
        """The steps of its bind mount."""
        return self._bind(building.context).steps_in(building)

    def tree(self, building: Building) -> tuple[Register, Iterable[Step]]:
        """The tree of its bind mount."""
        return self._bind(building.context).tree(building)

    def writes_to(self) -> Iterator[bytes | int]:
        """The directory."""
        return self._bind().writes_to()

    def writes_at(self) -> Iterator[bytes]:
        """Its target."""
        return self._bind().writes_at()

    # ---- files ---------------------------------------------------------------------------------------------------

    @property
    def _files(self) -> Files:
        if self._fd < 0:
            raise ValueError("the workspace is closed")
        if os.geteuid() != 0:
            self._unlock(
                self._fd, Bounds.of(self._doing("open the files that a program closed in"), 0, _FILES, _DEPTH, 600.0)
            )
        return Files(self._fd, Actor(None))

    def _unlock(self, directory: int, bounds: Bounds, depth: int = 0) -> None:
        """Let the owner read what a program has closed to its owner. Root needs no right for it."""
        own = os.geteuid()
        bounds.deep(depth, b"")
        for name in os.listdir(directory):
            bounds.one_file(os.fsencode(name))
            try:
                with Opened(open_beneath(directory, os.fsencode(name), os.O_PATH)) as handle:
                    found = os.fstat(handle)
                    wanted = 0o700 if stat.S_ISDIR(found.st_mode) else 0o400 if stat.S_ISREG(found.st_mode) else 0
                    if found.st_uid == own and found.st_mode & wanted != wanted:
                        os.chmod(f"/proc/self/fd/{handle}", stat.S_IMODE(found.st_mode) | wanted)
                    if stat.S_ISDIR(found.st_mode):
                        with Opened(os.open(f"/proc/self/fd/{handle}", _DIRECTORY)) as fd:
                            self._unlock(fd, bounds, depth + 1)
            except (FileNotFoundError, PermissionError, NotADirectoryError):
                continue  # gone meanwhile, or another id's, of which reading it tells
            except OSError as error:
                if error.errno != errno.ELOOP:  # a symbolic link has no mode
                    raise

    def usage(self) -> Usage:
        """The use of the workspace now: by the kernel's figures if it has any, else by a walk that follows no link."""
        if self._fd < 0:
            raise ValueError("the workspace is closed")
        if self._project is not None:
            used, count = self._project.usage(self._fd)
        elif self._mount >= 0:
            told = os.fstatvfs(self._fd)
            used, count = (told.f_blocks - told.f_bfree) * told.f_frsize, told.f_files - told.f_ffree
            used, count = used - self._own[0], count - self._own[1]
        else:
            used = count = 0
            if os.geteuid() != 0:
                self._unlock(self._fd, Bounds.of(self._doing("measure"), 0, _FILES, _DEPTH, 600.0))
            try:
                for fd, names in walk(self._fd):
                    for name in names:
                        try:
                            used += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
                        except FileNotFoundError:
                            continue
                        count += 1
            except OSError as error:
                raise SetupError(
                    error.errno or errno.EIO, "measure a workspace", part="Workspace", cause=error.strerror
                ) from None
        return Usage(used, count, used <= self.size and count <= self.files)

    # ---- life ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the workspace; a temporary one is removed. Programs that still run keep it until they end."""
        fd, self._fd = self._fd, -1
        mount, self._mount = self._mount, -1
        made, self._made = self._made, None
        project, self._project = self._project, None
        if project is not None and made is None and fd >= 0:
            project.end(fd)
        for each in (fd, mount):
            if each >= 0:
                os.close(each)
        if made is not None:
            _remove(made)
            if project is not None:
                project.release(os.path.dirname(made))


def _only_root(step: str, remedy: str) -> SetupError:
    return SetupError(errno.EPERM, step, part="Workspace", cause="only root on the host may do that", remedy=remedy)


def _remove(path: str) -> None:
    """Remove a directory of ours, in which a program may still run: nothing by a path that it could lead elsewhere."""
    parent, name = os.path.split(path)
    with Opened(os.open(parent, os.O_PATH | _DIRECTORY)) as fd:
        for left in reversed(range(_ROUNDS)):
            try:
                remove_here(fd, os.fsencode(name))
                return
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                if not left:
                    raise
            except OSError as error:
                if not left or error.errno != errno.ENOTEMPTY:
                    raise


def _count(files: int | str) -> int:
    """How many files there may be: an int, or "100k", "2M" (thousands)."""
    if isinstance(files, str):
        word = files.strip().lower()
        factor = {"k": 1000, "m": 1000_000}.get(word[-1:], 1)
        digits = word[:-1] if factor > 1 else word
        if not (digits.isascii() and digits.isdecimal()):
            raise ValueError(f"Workspace: files must be a number, or look like '100k', not {files!r}")
        files = int(digits) * factor
    if not is_int(files):
        raise TypeError(f"Workspace: files must be an int or a str such as '100k', not {files!r}")
    if not 1 <= files <= _FILES:
        raise ValueError(f"Workspace: files must be from 1 to {_FILES}, not {files}")
    return files
