"""A small /dev: devices that are harmless, terminals and shared memory of the sandbox's own."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from errno import EINVAL, ENODEV, EPERM
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding
from isolate.engine.plan import EACH, KEPT, Buffer, Load, Op, Phase, Register, Split, Step, Target, Test, call
from isolate.kernel import checks
from isolate.kernel.checks import keywords
from isolate.kernel.constants import (
    AT_FDCWD,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    O_CLOEXEC,
    O_RDWR,
    S_IFBLK,
    S_IFCHR,
    S_IFMT,
)
from isolate.kernel.paths import StrOrBytesPath, inside, text
from isolate.mounts.calls import STATX_MODE, STATX_RDEV, STATX_SIZE, attributes, clone, new_file_system, read_only, stat
from isolate.mounts.dev_null import exchange
from isolate.mounts.pseudo import Mqueue
from isolate.mounts.showing import Shown
from isolate.mounts.tmpfs import PAGE, Tmpfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Part
    from isolate.mounts.building import Building

__all__ = ["Dev", "open_device"]

#: Major and minor numbers (Documentation/admin-guide/devices.txt).
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
PTYS = 1024


@keywords
@dataclass(frozen=True, repr=False)
class Dev(Shown):
    """A /dev of its own: null, zero, full, random, urandom, tty; fd, stdin, stdout, stderr; pts and ptmx; shm.

    The devices are bound from the host by descriptor, each verified to be the device of that number, so mknod(2) need
    not be allowed; their modes and owners cannot be changed from inside. Terminals (devpts) are its own, at most
    1024. ``shm`` is the size of /dev/shm, None for none. ``mqueue`` adds /dev/mqueue and brings an IPC namespace. The
    directory itself is read-only once the root is complete.

    :param target: absolute path inside the sandbox.
    :param shm: size of /dev/shm; None for none.
    :param pts: terminals of its own.
    :param mqueue: with /dev/mqueue; brings an IPC namespace.

    >>> box = Sandbox(UserNamespace(), Root(Bind("/", "/"), Dev()))
    >>> box.run(["sh", "-c", "test -e /dev/sda || test -e /dev/kmsg"]).ok
    False
    """

    target: StrOrBytesPath = "/dev"
    _: KW_ONLY
    shm: int | str | None = "64M"
    pts: bool = True
    mqueue: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "Dev: target"))
        if self.shm is not None:
            checks.size("Dev: shm", self.shm, PAGE)

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    def brings(self) -> Iterator[Part]:
        """An IPC namespace, for the message queues."""
        if self.mqueue:
            yield from Mqueue().brings()

    def steps_in(self, building: Building) -> Iterator[Step]:
        """The devices while the host's are there; a tmpfs, and all in it by its descriptor."""
        dev, path = Register("dev"), self.place
        trees = {name: Register(name) for name in DEVICES}
        for name, tree in trees.items():
            yield open_device(b"/dev/" + name.encode(), DEVICES[name], tree)
        flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
        yield building.directory(text(path), building.next_name(), dev, flags, room=65536, inodes=64, mode=0o755)
        yield Step(
            Phase.ROOT,
            f"mount it on {text(path)}",
            tuple(building.attach(dev, path, symlinks=False)),
            path=path,
            template=building.kept(path, Split(build=None, again=(Target(building.root, path, dev, symlinks=False),))),
        )
        ops: list[Op] = []
        for name, tree in trees.items():
            ops += [*building.put(tree, dev, name.encode(), kind="file", mode=0o644), call("close", tree)]
        words = f"devices {' '.join(DEVICES)}"
        yield Step(Phase.ROOT, words, tuple(ops), path=path, template=KEPT)
        null = Register("null")
        ops = [call("openat", dev, b"null", O_RDWR | O_CLOEXEC, 0, out=null), *exchange(null), call("close", null)]
        words = "streams that are the host's null device become this one"
        yield Step(Phase.ROOT, words, tuple(ops), path=path, template=EACH)
        links = {**LINKS, "ptmx": "pts/ptmx"} if self.pts else LINKS
        yield Step(
            Phase.ROOT,
            f"symbolic links {' '.join(links)}",
            tuple(call("symlinkat", to.encode(), dev, name.encode()) for name, to in links.items()),
            path=path,
            template=KEPT,
        )
        if self.pts:
            building.each(path + b"/pts")
            yield self._terminals(building, dev)
        if self.shm is not None:
            building.each(path + b"/shm")
            fs, steps = Tmpfs(path + b"/shm", size=self.shm, exec=False).tree(building)
            yield from steps
            place = building.put(fs, dev, b"shm")
            split = Split(build=place[:1], again=(*place[1:], call("close", fs)))
            words = f"mount it on {text(path)}/shm"
            yield Step(Phase.ROOT, words, (*place, call("close", fs)), path=path, template=split)
        if self.mqueue:
            yield from Mqueue(path + b"/mqueue").steps_in(building)
        building.at_end(
            Step(
                Phase.ROOT,
                f"{text(path)} itself is read-only",
                (read_only(dev), call("close", dev)),
                path=path,
                template=Split(build=None, again=(call("close", dev),)),
            )
        )

    def _terminals(self, building: Building, dev: Register) -> Step:
        pts = Register("pts")
        options = [(b"ptmxmode", b"0666"), (b"mode", b"0620"), (b"max", b"%d" % PTYS)]
        making = new_file_system(b"devpts", pts, options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
        place, attaching = building.put(pts, dev, b"pts")
        return Step(
            Phase.ROOT,
            f"terminals of its own on {text(self.place)}/pts",
            (*making, place, attaching, call("close", pts)),
            template=Split(build=(place,), again=(*making, attaching, call("close", pts))),
            path=self.place,
            hints={
                EINVAL: Finding(
                    "devpts needs uid 0 and gid 0 mapped in the user namespace", "map them, or say Dev(pts=False)"
                ),
                EPERM: Finding("this host does not allow terminals of its own here", "say Dev(pts=False)"),
            },
        )


def open_device(path: bytes, number: tuple[int, int], tree: Register, *, block: bool = False) -> Step:
    """The host's node of a device, verified to be it, as a mount that cannot change the node."""
    buffer, pinned = Buffer(STATX_SIZE, "stat", scratch=True), Buffer(STATX_SIZE, "p", report=True)
    major, minor = number
    ops: tuple[Op, ...] = (
        clone(AT_FDCWD, path, tree, recursive=False),
        stat(tree, buffer),
        Test(Load(buffer, STATX_MODE, 4), S_IFBLK if block else S_IFCHR, mask=int(S_IFMT), error=ENODEV),
        Test(Load(buffer, STATX_RDEV), major | minor << 32, error=ENODEV),
        # Read-only is no bar to writing to a device, but to changing the host's node: its mode, its owner, its times.
        attributes(tree, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, private=True),
    )
    return Step(
        Phase.SOURCES,
        f"open the host's {text(path)}, which must be device {major}:{minor}",
        ops,
        template=Split(build=(*ops, stat(tree, pinned)), sources=((path, pinned),)),
        path=path,
        hints={ENODEV: "what stands there on the host is not that device"},
    )
