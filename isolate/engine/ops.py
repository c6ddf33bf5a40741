"""Ops and their arguments: what a step does to the kernel, in symbols.

A system call by name with constants, strings, buffers, registers and descriptors; and the few ops that are more than a
call. :mod:`isolate.engine.plan` puts them into steps, ``isolate.engine.tape`` turns them into bytes.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

# ---- arguments ---------------------------------------------------------------------------------------------------


class Register:
    """A value that an earlier op's result fills, such as the descriptor from ``open_tree``."""

    __slots__ = ("name",)

    def __init__(self, name: str = "fd") -> None:
        self.name: str = name


CHILD = Register("child")  #: the pid of init as the supervisor sees it
SELF = Register("self")  #: the pid of the running process as it sees itself
LAUNCHER = Register("launcher")  #: the pid of the supervisor


#: A descriptor of the caller's /proc, in the supervisor of a start from a tree that is made once and has none.
CALLERS_PROC = Register("the caller's /proc")


class Buffer:
    """Memory for a structure or a result; zeroed, or with the bytes given.

    ``scratch``: only one step uses it, and writes to it before it reads. Such buffers share their memory, since each
    page that a start writes to has to be copied first.
    """

    __slots__ = ("data", "name", "report", "scratch")

    def __init__(self, data: int | bytes, name: str = "buffer", *, report: bool = False, scratch: bool = False) -> None:
        self.data: bytes = bytes(data)
        self.name: str = name
        #: Whether its contents travel back to Python at the end (``Process.report``).
        self.report: bool = report
        self.scratch: bool = scratch

    def at(self, offset: int) -> Address:
        """The address of a byte of it."""
        return Address(self, offset)


class Address:
    """The address of a byte in a buffer."""

    __slots__ = ("buffer", "offset")

    def __init__(
        self,
        buffer: Buffer,
        offset: int,
    ) -> None:
        self.buffer: Buffer = buffer
        self.offset: int = offset


class Load:
    """The value that a buffer holds when the op runs; ``width`` is 4 or 8 bytes, little-endian."""

    __slots__ = ("buffer", "offset", "width")

    def __init__(
        self,
        buffer: Buffer,
        offset: int = 0,
        width: int = 8,
    ) -> None:
        self.buffer: Buffer = buffer
        self.offset: int = offset
        self.width: int = width


class Slot:
    """A descriptor of the caller's, handed to the launcher. Made by :meth:`Context.descriptor`."""

    __slots__ = ("fd", "number")

    def __init__(
        self,
        number: int,
        fd: int,
    ) -> None:
        self.number: int = number
        self.fd: int = fd


class _Special(enum.Enum):
    CWD = "cwd"
    COUNTER = "counter"
    FLAGS = "flags"


CWD = _Special.CWD  #: the address of the run's working directory
COUNTER = _Special.COUNTER  #: in a repeated call: 0, 1, 2, …
FLAGS = _Special.FLAGS  #: what the caller knows when it starts: ``ISO_RUN_*``

Argument: TypeAlias = "int | bytes | Register | Buffer | Address | Load | Slot | _Special"


class Label:
    """A place further on among the ops of a step, to jump to."""

    __slots__ = ()


# ---- ops -----------------------------------------------------------------------------------------------------------


class Call:
    """A system call by name.

    ``bytes`` arguments are passed by address, with a NUL behind them. ``errors`` are the errno values that ``policy``
    speaks of: ``"ignore"`` takes them for success, ``"retry"`` tries again for up to two seconds, ``"jump"`` goes on at
    ``label`` (``"skip"`` also marks the step as not in force). With ``expect`` any other result is EIO.
    With ``repeat`` it is made so many times, :data:`COUNTER` counting, up to the first of ``errors``.
    """

    __slots__ = ("args", "errors", "expect", "label", "name", "out", "policy", "repeat")

    def __init__(
        self,
        name: str,
        args: tuple[Argument, ...],
        out: Register | None = None,
        errors: tuple[int, ...] = (),
        policy: str = "ignore",
        label: Label | None = None,
        expect: int | None = None,
        repeat: int = 1,
    ) -> None:
        self.name: str = name
        self.args: tuple[Argument, ...] = args
        self.out: Register | None = out
        self.errors: tuple[int, ...] = errors
        self.policy: str = policy
        self.label: Label | None = label
        self.expect: int | None = expect
        self.repeat: int = repeat


def call(name: str, *args: Argument, out: Register | None = None, **keywords: object) -> Call:
    """``Call`` with its arguments in a row."""
    return Call(name, args, out, **keywords)  # type: ignore[arg-type]


class Store:
    """Write a value into a buffer: ``width`` bytes little-endian, or, with 0, its decimal digits and a NUL."""

    __slots__ = ("buffer", "offset", "value", "width")

    def __init__(
        self,
        buffer: Buffer,
        offset: int,
        value: Argument,
        width: int = 8,
    ) -> None:
        self.buffer: Buffer = buffer
        self.offset: int = offset
        self.value: Argument = value
        self.width: int = width


class Test:
    """Go on only if ``value & mask == wanted`` (or, with ``negate``, differs); else ``error``, or jump to ``label``."""

    __test__ = False  # not a test case for pytest

    __slots__ = ("error", "label", "mask", "negate", "skip", "value", "wanted")

    def __init__(
        self,
        value: Argument,
        wanted: Argument,
        mask: int = -1,
        error: int = 71,  # EPROTO
        label: Label | None = None,
        negate: bool = False,
        skip: bool = False,
    ) -> None:
        self.value: Argument = value
        self.wanted: Argument = wanted
        self.mask: int = mask
        self.error: int = error
        self.label: Label | None = label
        self.negate: bool = negate
        self.skip: bool = skip


class Jump:
    """Go on at ``label``, whatever holds. With ``skip`` the step is told as not in force."""

    __slots__ = ("label", "skip")

    def __init__(self, label: Label, *, skip: bool = False) -> None:
        self.label: Label = label
        self.skip: bool = skip


class Fail:
    """Stop with an error, whatever holds."""

    __slots__ = ("error",)

    def __init__(self, error: int) -> None:
        self.error: int = error


class Line:
    """Go on only if the text in a buffer, which ends with a NUL, has this line; else ``error``."""

    __slots__ = ("buffer", "error", "line")

    def __init__(self, buffer: Buffer, line: bytes, error: int = 71) -> None:  # EPROTO
        self.buffer: Buffer = buffer
        self.line: bytes = line
        self.error: int = error


class Target:
    """Resolve a path beneath a root by descriptor, making what is missing; the result is a descriptor.

    Symbolic links are followed inside the root and never lead out of it (openat2(2), RESOLVE_IN_ROOT);
    magic links never. ``make`` is ``"dir"``, ``"file"`` or None. ``mode`` is that of a file or directory made (missing
    parents get 0755). ``symlinks=False`` refuses them in every component. ``parent`` gives the directory that the last
    component stands in. ``open`` is ``"path"``, ``"read"`` or ``"write"``. ``file_system`` is the f_type that the
    result must lie in (EXDEV).
    """

    __slots__ = (
        "errors",
        "file_system",
        "label",
        "make",
        "mode",
        "must_be_new",
        "open",
        "out",
        "parent",
        "path",
        "policy",
        "root",
        "symlinks",
    )

    def __init__(
        self,
        root: Argument,
        path: bytes,
        out: Register,
        make: str | None = None,
        mode: int = 0o755,
        symlinks: bool = True,
        must_be_new: bool = False,
        parent: bool = False,
        open: str = "path",
        file_system: int = 0,
        errors: tuple[int, ...] = (),
        policy: str = "ignore",
        label: Label | None = None,
    ) -> None:
        self.root: Argument = root
        self.path: bytes = path
        self.out: Register = out
        self.make: str | None = make
        self.mode: int = mode
        self.symlinks: bool = symlinks
        self.must_be_new: bool = must_be_new
        self.parent: bool = parent
        self.open: str = open
        self.file_system: int = file_system
        self.errors: tuple[int, ...] = errors
        self.policy: str = policy
        self.label: Label | None = label


class RemoveTree:
    """Supervisor: remove a tree of empty directories, retrying while it is busy.

    Where these are cgroups, what is inside is thawed and killed first. All that one launcher removes has one deadline.
    Groups of v1 have no cgroup.kill: whoever is in there is killed only with ``everybody``.
    """

    __slots__ = ("directory", "errors", "everybody", "name", "policy")

    def __init__(
        self,
        directory: Argument,
        name: Argument,
        errors: tuple[int, ...] = (),
        policy: str = "ignore",
        everybody: bool = False,
    ) -> None:
        self.directory: Argument = directory
        self.name: Argument = name
        self.errors: tuple[int, ...] = errors
        self.policy: str = policy
        self.everybody: bool = everybody


class Thaw:
    """Supervisor: let a cgroup of v1 and those below it go on; a frozen task of v1 does not die of a signal."""

    __slots__ = ("directory", "errors", "name", "policy")

    def __init__(
        self,
        directory: Argument,
        name: Argument,
        errors: tuple[int, ...] = (),
        policy: str = "ignore",
    ) -> None:
        self.directory: Argument = directory
        self.name: Argument = name
        self.errors: tuple[int, ...] = errors
        self.policy: str = policy


class Cover:
    """Init: make every cgroup file system read-only that its mount namespace shows.

    ``proc`` is a descriptor of the caller's /proc, ``outer`` one of the supervisor's mount namespace. With ``apart``
    the mount namespace is somebody else's. There, and where init is still in the supervisor's own, init leaves for a
    copy before anything is changed: a mount of the host is never touched.
    """

    __slots__ = ("apart", "outer", "proc")

    def __init__(self, proc: Argument, outer: Argument, apart: bool = False) -> None:
        self.proc: Argument = proc
        self.outer: Argument = outer
        self.apart: bool = apart


class RunHost:
    """Supervisor: run a program of the host (``newuidmap``) and wait for it; ECHILD if it fails."""

    __slots__ = ("args", "path")

    def __init__(
        self,
        path: bytes,
        args: tuple[bytes | Buffer, ...],
    ) -> None:
        self.path: bytes = path
        self.args: tuple[bytes | Buffer, ...] = args


class MapOfIds:
    """Supervisor: a user namespace with these maps, in which nothing runs; the result is its descriptor.

    For mounts that show the owners of files by it (mount_setattr(2), MOUNT_ATTR_IDMAP).
    """

    __slots__ = ("gids", "out", "uids")

    def __init__(self, uids: bytes, gids: bytes, out: Register) -> None:
        self.uids: bytes = uids
        self.gids: bytes = gids
        self.out: Register = out


class Engine:
    """An op that only the launcher knows: ``sync``, ``session``, ``find``, ``fds``, ``exec``, ``aside``, ``meet``."""

    __slots__ = ("name",)

    def __init__(
        self,
        name: str,
    ) -> None:
        self.name: str = name


Op: TypeAlias = (
    Call | Store | Test | Jump | Fail | Line | Target | RemoveTree | Thaw | Cover | RunHost | MapOfIds | Engine | Label
)
