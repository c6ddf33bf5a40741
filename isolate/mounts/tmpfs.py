"""A file system in memory, always with limits (tmpfs(5))."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from errno import EINVAL, EPERM
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding
from isolate.engine.plan import EACH, Phase, Register, Step
from isolate.kernel import checks
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.constants import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, Constant
from isolate.kernel.paths import StrOrBytesPath, inside, text
from isolate.mounts.calls import new_file_system
from isolate.mounts.reversible import ReversibleMount
from isolate.mounts.showing import Shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.mounts.building import Building

__all__ = ["Tmpfs"]

PAGE = 4096

NEW_HINTS = {
    EPERM: Finding(
        "a new mount needs CAP_SYS_ADMIN in the mount namespace's user namespace", "be root, or add UserNamespace()"
    ),
    EINVAL: Finding("this kernel does not know an option of it", "leave the option out, or upgrade the kernel"),
}


def check_mode(mode: object, what: str = "mode") -> int:
    """Permission bits."""
    if not is_int(mode):
        raise TypeError(f"{what} must be an int such as 0o755, not {mode!r}")
    if not 0 <= mode <= 0o7777:
        raise ValueError(f"{what} must be from 0 to 0o7777, not {mode:#o}")
    return mode


def check_inodes(inodes: object) -> int:
    """A number of files and directories."""
    if not is_int(inodes):
        raise TypeError(f"inodes must be an int, not {inodes!r}")
    if not 2 <= inodes <= 2**31:
        raise ValueError(f"inodes must be from 2 to 2**31, not {inodes}")
    return inodes


def pages(size: int) -> int:
    """The kernel counts whole pages, and takes 0 for "no limit"."""
    return max(PAGE, -(-size // PAGE) * PAGE)


def default_inodes(size: int) -> int:
    """One inode for each page, within reason: an inode costs about a kilobyte of kernel memory that ``size`` does not
    count.
    """
    return min(max(size // PAGE, 64), 1 << 20)


@keywords
@dataclass(frozen=True, repr=False)
class Tmpfs(Shown, ReversibleMount):
    """An empty, writable file system in memory at ``target``, gone with the sandbox.

    ``size`` is its limit in bytes (``"64M"`` unless given; rounded up to pages), ``inodes`` that of files and
    directories (one for each 4 KiB of size unless given), ``mode`` that of its top directory. Its contents count as
    memory of the sandbox's cgroup. nosuid and nodev always; ``exec=False`` adds noexec, ``read_only`` makes it an empty
    directory that stays so.

    Needs CAP_SYS_ADMIN or a user namespace. Errors: EROFS if the target is missing in something read-only.

    :param target: absolute path inside the sandbox.
    :param size: limit in bytes, such as ``"64M"``.
    :param inodes: limit of files and directories; one for each 4 KiB of ``size`` unless given.
    :param mode: of the top directory, 0 to 0o7777.
    :param exec: programs on it can be executed.
    :param read_only: nothing can be written.

    >>> box = Sandbox(UserNamespace(), Root(Bind("/", "/"), Tmpfs("/tmp", size="1M")))
    >>> box.run(["dd", "if=/dev/zero", "of=/tmp/x", "bs=1M", "count=2"]).ok
    False
    """

    target: StrOrBytesPath
    _: KW_ONLY
    size: int | str = "64M"
    inodes: int | None = None
    mode: int = 0o1777
    exec: bool = True
    read_only: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target))
        checks.size("Tmpfs: size", self.size, PAGE)
        check_mode(self.mode)
        if self.inodes is not None:
            check_inodes(self.inodes)

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    def tree(self, building: Building) -> tuple[Register, Iterable[Step]]:
        """A new tmpfs, attached nowhere yet."""
        fs = Register("tmpfs")
        limit = pages(checks.size("size", self.size))
        inodes = self.inodes or default_inodes(limit)
        options = [(b"size", b"%d" % limit), (b"nr_inodes", b"%d" % inodes), (b"mode", b"%o" % self.mode)]
        flags: Constant = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        flags = flags if self.exec else flags | MOUNT_ATTR_NOEXEC
        flags = flags | MOUNT_ATTR_RDONLY if self.read_only else flags
        words = f"tmpfs for {text(self.place)}: at most {limit} bytes in {inodes} files"
        step = Step(
            Phase.ROOT,
            words,
            tuple(new_file_system(b"tmpfs", fs, options, flags)),
            path=self.place,
            hints=NEW_HINTS,
            template=EACH,
        )
        return fs, [step]

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Make it, mount it."""
        fs, steps = self.tree(building)
        yield from steps
        yield building.mount(fs, self.place, mode=self.mode, template=building.each(self.place, mode=self.mode))
