"""The kernel's own file systems: procfs, sysfs, mqueue. Made new, never taken from a path, so that they are what they
say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from errno import EINVAL, ENODEV, ENOENT, EPERM, EXDEV
from typing import TYPE_CHECKING, Any, ClassVar

from isolate.engine.finding import Finding
from isolate.engine.plan import EACH, Buffer, Label, Load, Op, Phase, Register, Step, Test, call
from isolate.kernel.checks import keywords
from isolate.kernel.constants import (
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    PROC_SUPER_MAGIC,
    STATX_BASIC_STATS,
    SYSFS_MAGIC,
)
from isolate.kernel.paths import StrOrBytesPath, inside, text
from isolate.mounts.calls import STATX_SIZE, attributes, clone, if_directory, move_to, new_file_system, read_only
from isolate.mounts.refused import refused
from isolate.mounts.showing import Shown
from isolate.namespaces.part import IpcNamespace, NetNamespace, PidNamespace, UserNamespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Part
    from isolate.kernel.constants import Constant
    from isolate.mounts.building import Building

__all__ = ["Mqueue", "Proc", "Sys"]

# As Docker and Podman cover them: what tells of the host, or lets root change it.
PROC_MASKED = (
    "/acpi",
    "/asound",
    "/interrupts",
    "/kcore",
    "/keys",
    "/latency_stats",
    "/sched_debug",
    "/scsi",
    "/timer_list",
    "/timer_stats",
)
PROC_READ_ONLY = ("/bus", "/fs", "/irq", "/sys", "/sysrq-trigger")
SYS_MASKED = ("/firmware", "/devices/virtual/powercap")

HIDEPID = ("off", "noaccess", "invisible", "ptraceable")

FLAGS: Constant = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC


def relative(paths: object, what: str) -> tuple[str, ...]:
    """Paths below the file system's own top, normalised."""
    if isinstance(paths, (str, bytes)) or not isinstance(paths, Iterable):
        raise TypeError(f"{what} must be several paths, not {paths!r}")
    return tuple(text(inside(path, what)) for path in paths)


def covers(building: Building, fs: Register, paths: Iterable[str], magic: int) -> Iterator[Op]:
    """Cover those of the paths that are there. From the file system's own top: no path of the root is walked."""
    for path in paths:
        name = path.encode(errors="surrogateescape").strip(b"/")
        if b"/" in name:
            yield from building.cover(fs, name, symlinks=False, missing="ignore", file_system=magic)
            continue
        # In the top directory of a file system that the kernel alone fills nobody can have put a link or a mount, so
        # the name needs no look-up beneath a root.
        directory, file = building.empty()
        cover, kind, end = Register("cover"), Buffer(STATX_SIZE, "stat", scratch=True), Label()
        missing: dict[str, Any] = {"errors": (ENOENT,), "policy": "jump", "label": end}
        yield call("statx", fs, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, kind, **missing)
        yield from if_directory(
            kind,
            [clone(building.scratch_root, directory, cover, recursive=False)],
            [clone(building.scratch_root, file, cover, recursive=False)],
        )
        yield move_to(cover, fs, name)
        yield call("close", cover)
        yield end


def freezes(building: Building, fs: Register, paths: Iterable[str], magic: int) -> Iterator[Op]:
    """Make those of the paths that are there read-only, with all below."""
    for path in paths:
        name = path.encode(errors="surrogateescape").strip(b"/")
        if b"/" in name:
            yield from building.freeze(fs, name, symlinks=False, recursive=True, missing="ignore", file_system=magic)
            continue
        tree, end = Register("tree"), Label()
        yield clone(fs, name, tree, follow=False, errors=(ENOENT,), policy="jump", label=end)
        yield read_only(tree, recursive=True)
        yield move_to(tree, fs, name)
        yield call("close", tree)
        yield end


@keywords
@dataclass(frozen=True, repr=False)
class Proc(Shown):
    """A procfs of the sandbox's own pid namespace (which it brings), at ``target``.

    ``masked`` are paths in it that are covered and ``read_only`` those that cannot be written, where they exist; the
    defaults are Docker's. ``subset="pid"`` leaves only processes (Linux 5.8). ``hidepid`` is ``"noaccess"``,
    ``"invisible"`` or ``"ptraceable"``: whose processes a user sees (proc(5)). nosuid, nodev, noexec.

    Errors: EPERM in a user namespace where the host's own /proc is partly covered.

    :param target: absolute path inside the sandbox.
    :param subset: ``"pid"``: processes alone.
    :param hidepid: ``"noaccess"``, ``"invisible"`` or ``"ptraceable"``.
    :param masked: paths in it that are covered.
    :param read_only: paths in it that cannot be written.

    >>> box = Sandbox(UserNamespace(), Root(Bind("/", "/"), Proc()))
    >>> box.run(["sh", "-c", "cd /proc; echo [0-9]*"]).stdout
    b'1 2\\n'
    """

    target: StrOrBytesPath = "/proc"
    _: KW_ONLY
    subset: str | None = None
    hidepid: str | None = None
    masked: tuple[str, ...] = PROC_MASKED
    read_only: tuple[str, ...] = PROC_READ_ONLY

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "Proc: target"))
        if self.subset not in (None, "pid"):
            raise ValueError(f"Proc: subset must be 'pid' or None, not {self.subset!r}")
        if self.hidepid is not None and self.hidepid not in HIDEPID:
            raise ValueError(f"Proc: hidepid must be one of {', '.join(HIDEPID)} or None, not {self.hidepid!r}")
        for name in ("masked", "read_only"):
            object.__setattr__(self, name, relative(getattr(self, name), f"Proc: {name}"))

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    def brings(self) -> Iterator[Part]:
        """The pid namespace whose processes it shows."""
        yield PidNamespace()

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Make it, mount it, cover and freeze parts of it."""
        fs, path = Register("proc"), self.place
        options: list[tuple[bytes, bytes | None]] = []
        if self.hidepid is not None:
            options.append((b"hidepid", self.hidepid.encode()))
        if self.subset is not None:
            options.append((b"subset", self.subset.encode()))
        yield Step(
            Phase.ROOT,
            f"procfs on {text(path)}",
            (*new_file_system(b"proc", fs, options, FLAGS), *building.attach(fs, path, symlinks=False, mode=0o555)),
            path=path,
            hints={
                EPERM: refused("proc"),
                EINVAL: Finding("this kernel does not know an option (Linux 5.8)", "leave the option out", True),
            },
            template=building.each(path, symlinks=False, mode=0o555),
        )
        covered = tuple(covers(building, fs, self.masked, PROC_SUPER_MAGIC))
        if covered:
            words = f"cover in it {' '.join(self.masked)}"
            yield Step(Phase.ROOT, words, covered, path=path, template=EACH)
        frozen = tuple(freezes(building, fs, self.read_only, PROC_SUPER_MAGIC))
        words = f"read-only in it {' '.join(self.read_only)}" if frozen else "nothing in it is frozen"
        yield Step(Phase.ROOT, words, (*frozen, call("close", fs)), path=path, template=EACH)


@keywords
@dataclass(frozen=True, repr=False)
class Sys(Shown):
    """A sysfs, read-only, at ``target``. ``masked`` paths in it are covered where they exist.

    It shows the sandbox's own network namespace. In a user namespace without a network namespace of its own the kernel
    refuses a new one: then it is the host's, with the mounts below, read-only, and /sys/fs/cgroup covered.

    :param target: absolute path inside the sandbox.
    :param masked: paths in it that are covered.

    >>> box = Sandbox(UserNamespace(), NetNamespace(), Root(Bind("/", "/"), Sys()))
    >>> box.run(["ls", "/sys/class/net"]).stdout
    b'lo\\n'
    """

    target: StrOrBytesPath = "/sys"
    _: KW_ONLY
    masked: tuple[str, ...] = SYS_MASKED

    #: The mount shows the network namespace of whoever makes it.
    needs_network: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "Sys: target"))
        object.__setattr__(self, "masked", relative(self.masked, "Sys: masked"))

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Make it or clone it, mount it, cover parts of it."""
        fs, path = Register("sys"), self.place
        net = building.context.find(NetNamespace)
        fresh = building.context.find(UserNamespace) is None or (net is not None and not net.joined)
        masked = self.masked
        ops: list[Op] = []
        if fresh:
            ops += new_file_system(b"sysfs", fs, [], FLAGS | MOUNT_ATTR_RDONLY)
        else:
            masked = (*masked, "/fs/cgroup")
            yield _host_sys(fs)
        yield Step(
            Phase.ROOT,
            f"sysfs on {text(path)}, read-only",
            (*ops, *building.attach(fs, path, symlinks=False, mode=0o555)),
            path=path,
            hints={EPERM: refused("sysfs")},
        )
        # On the host's own, some may be covered already: by another file system.
        covered = tuple(covers(building, fs, masked, SYSFS_MAGIC if fresh else 0))
        words = f"cover in it {' '.join(masked)}" if covered else "nothing in it is covered"
        yield Step(Phase.ROOT, words, (*covered, call("close", fs)), path=path)


def _host_sys(fs: Register) -> Step:
    buffer = Buffer(256, "statfs")
    return Step(
        Phase.SOURCES,
        "open the host's /sys, read-only",
        (
            clone(AT_FDCWD, b"/sys", fs),
            call("fstatfs", fs, buffer),
            Test(Load(buffer), SYSFS_MAGIC, error=EXDEV),
            attributes(fs, FLAGS | MOUNT_ATTR_RDONLY, recursive=True, private=True),
        ),
        path=b"/sys",
        hints={EXDEV: "what is mounted on /sys is no sysfs"},
    )


@keywords
@dataclass(frozen=True, repr=False)
class Mqueue(Shown):
    """The POSIX message queues of the sandbox's own IPC namespace (which it brings), as files (mq_overview(7)).

    Programs see, make and remove queues there as with mq_open(3). The queues are gone with the namespace. Their number
    and size are bounded by the sysctls fs.mqueue of the namespace and by RLIMIT_MSGQUEUE. nosuid, nodev and noexec.

    Needs CAP_SYS_ADMIN or a user namespace, and a kernel with CONFIG_POSIX_MQUEUE (else ENODEV).

    :param target: absolute path inside the sandbox.

    >>> Sandbox(UserNamespace(), Root(Bind("/", "/"), Dev(mqueue=True))).run(["ls", "/dev/mqueue"]).ok
    True
    """

    target: StrOrBytesPath = "/dev/mqueue"

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "Mqueue: target"))

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    def brings(self) -> Iterator[Part]:
        """The IPC namespace whose queues it shows."""
        yield IpcNamespace()

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Make it, mount it."""
        fs, path = Register("mqueue"), self.place
        yield Step(
            Phase.ROOT,
            f"message queues on {text(path)}",
            (
                *new_file_system(b"mqueue", fs, [], FLAGS),
                *building.attach(fs, path, symlinks=False, mode=0o1777),
                call("close", fs),
            ),
            template=building.each(path, symlinks=False, mode=0o1777),
            path=path,
            hints={
                EPERM: Finding("the IPC namespace belongs to another user namespace", "let both be new, or neither"),
                ENODEV: Finding(
                    "this kernel has no POSIX message queues", "leave Mqueue out, or use another kernel", True
                ),
            },
        )
