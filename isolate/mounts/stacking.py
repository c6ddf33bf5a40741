"""How layers become one mount: the steps that an overlay and an image have in common (overlayfs.rst)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from errno import EBADF, EINVAL
from typing import TYPE_CHECKING, Any

from isolate.engine.plan import Buffer, Fail, Jump, Label, Load, Op, Phase, Register, Step, Store, Test, call
from isolate.errors import ConflictError
from isolate.kernel import checks
from isolate.kernel.constants import (
    AT_EMPTY_PATH,
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
from isolate.kernel.paths import text
from isolate.mounts.calls import STATX_GID, STATX_MODE, STATX_SIZE, STATX_UID, clone, new_file_system, on_top, stat
from isolate.mounts.refused import DATA_ONLY, OVERLAY
from isolate.mounts.telling import telling
from isolate.mounts.tmpfs import PAGE, default_inodes, pages
from isolate.namespaces.part import UserNamespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolate.mounts.building import Building

__all__ = ["Stacking"]

#: How overlayfs uses redirects in extended attributes: "nofollow" neither makes nor follows them, "off" follows.
NO_REDIRECTS = ((b"redirect_dir", b"nofollow"), (b"metacopy", b"off"))
REDIRECTS = ((b"redirect_dir", b"on"),)
F_DUPFD_CLOEXEC = Constant(1030, "F_DUPFD_CLOEXEC")


@dataclass(frozen=True)
class Stacking:
    """``count`` layers at ``place``: where changes go, and what overlayfs is told.

    ``own_xattrs``: its marks are those that root of a user namespace can make (user.overlay.*), also where there is no
    user namespace. ``attached``: the layers are mounts that are attached nowhere yet. ``volatile``: changes are not
    forced to disk when it is unmounted; a work directory serves once. ``owned``: the layers have the owners that they
    are to have inside, so the top can have that of the uppermost.
    """

    place: bytes
    count: int
    _: KW_ONLY
    read_only: bool = False
    exec: bool = True
    size: int | str = "256M"
    inodes: int | None = None
    redirects: bool = False
    own_xattrs: bool = False
    attached: bool = False
    volatile: bool = False
    owned: bool = False

    def steps(
        self,
        building: Building,
        lower: Sequence[Register],
        kept: tuple[Register, Register] | None,
        out: Register,
        *,
        contents: Register | None = None,
    ) -> Iterator[Step]:
        """Mount the layers, the uppermost first, whose descriptors stand in ``lower``: attached nowhere yet.

        ``kept`` are the descriptors of upper and work directory; without them changes go to memory, or nowhere.
        ``contents`` is a data-only layer, of which outlines in the others have their contents.
        """
        layers = [(b"lowerdir+", fd) for fd in lower]
        memory = Register("memory")
        memory_upper: Register | None = None
        if kept is not None:
            layers += [(b"upperdir", kept[0]), (b"workdir", kept[1])]
        else:
            # Without layers there is an empty one; overlayfs wants one below what is written to, or two.
            # With contents that is one more, and none may lie between the outlines in its top directory and those.
            names = [b"empty"] * ((self.read_only and contents is None) or not lower)
            names += [b"bottom"] * (self.read_only and not lower)
            names += [] if self.read_only else [b"upper", b"work"]
            directories = [(name, Register(name.decode())) for name in names]
            yield self._memory(building, memory, lower[0] if lower else None, directories)
            keys = {b"upper": b"upperdir", b"work": b"workdir"}
            memory_upper = dict(directories).get(b"upper")
            layers += [(keys.get(name, b"lowerdir+"), fd) for name, fd in directories]
        if contents is not None:
            layers.append((b"datadir+", contents))  # after every other layer
        if self.attached:
            # Before Linux 6.15 a layer must be attached somewhere; they stack, and go from the top.
            yield Step(Phase.ROOT, "the layers lie on the old root", tuple(map(on_top, lower)))
        yield self._mount(building, layers, out)
        if memory_upper is not None:
            marks = self._has_own_xattrs(building)
            handing = telling(building, self.place, memory_upper, lower, own_xattrs=marks, contents=contents)
            if handing is not None:
                yield handing
        ends: list[Op] = []
        for fd in reversed(lower if self.attached else ()):
            ends += [call("fchdir", fd), call("umount2", b".", MNT_DETACH)]
        ends += [call("close", fd) for _, fd in layers]
        if kept is None:
            # The overlay holds on to it; its place on the old root was for the making only.
            ends += [call("fchdir", memory), call("umount2", b".", MNT_DETACH), call("close", memory)]
        yield Step(Phase.ROOT, "let go of the layers", tuple(ends))

    def _has_own_xattrs(self, building: Building) -> bool:
        return self.own_xattrs or building.context.find(UserNamespace) is not None

    def _memory(
        self, building: Building, memory: Register, first: Register | None, directories: list[tuple[bytes, Register]]
    ) -> Step:
        limit = pages(checks.size("size", self.size))
        inodes = self.inodes or default_inodes(limit)
        options = [(b"size", b"%d" % limit), (b"nr_inodes", b"%d" % inodes), (b"mode", b"0700")]
        buffer = Buffer(STATX_SIZE, "stat", scratch=True)
        ops: list[Op] = [
            *new_file_system(b"tmpfs", memory, options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV),
            on_top(memory),  # before Linux 6.15 a layer must be attached somewhere
        ]
        if first is not None:
            ops.append(stat(first, buffer))
        for name, fd in directories:
            ops += [call("mkdirat", memory, name, 0o755), call("openat", memory, name, O_PATH | O_CLOEXEC, 0, out=fd)]
            if name == b"upper" and first is not None:
                # The top directory of an overlay has the mode and owner of its upper layer's.
                if self.owned or building.context.find(UserNamespace) is None:
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
        marks = self._has_own_xattrs(building)
        for flag, wanted in ((b"userxattr", marks), (b"volatile", self.volatile)):
            if wanted:
                ops.append(call("fsconfig", fs, FSCONFIG_SET_FLAG, flag, 0, 0))
        ops += [
            call("fsconfig", fs, FSCONFIG_CMD_CREATE, 0, 0, 0),
            call("fsmount", fs, FSMOUNT_CLOEXEC, flags, out=out),
            call("close", fs),
            Jump(end),
            fallback,
            call("close", fs),
            *_mount_by_name(layers, old, self._words(marks, following), out),
            end,
        ]
        words = f"overlay for {text(self.place)} of {self.count} layers"
        hints = DATA_ONLY if any(key == b"datadir+" for key, _ in layers) else OVERLAY
        return Step(Phase.ROOT, words, tuple(ops), path=self.place, hints=hints)

    def _words(self, marks: bool, following: tuple[tuple[bytes, bytes], ...]) -> bytes:
        """The options of mount(2)."""
        data = b"userxattr" if marks else b"index=off"
        data += b",volatile" if self.volatile else b""
        return data + b"".join(b",%s=%s" % option for option in following)


def _mount_by_name(
    layers: list[tuple[bytes, Register]],
    flags: Constant,
    data: bytes,
    out: Register,
) -> list[Op]:
    """mount(2) with the layers as /proc/self/fd/100 and on: names in which no character needs an escape."""
    if any(key == b"datadir+" for key, _ in layers):
        return [Fail(EINVAL)]  # kernels that need this path know no data-only layers with these marks
    ops: list[Op] = []
    digits: list[tuple[int, Register]] = []
    for key, words in ((b"lowerdir+", b",lowerdir="), (b"upperdir", b",upperdir="), (b"workdir", b",workdir=")):
        for index, fd in enumerate(fd for k, fd in layers if k == key):
            data += (b":" if index else words) + b"/proc/self/fd/"
            digits.append((len(data), fd))
            data += b"000"
    if len(data) >= PAGE:
        return [Fail(EINVAL)]  # mount(2) takes a page of options
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
