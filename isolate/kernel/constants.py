"""Constants of the kernel's interface, under the kernel's names.

Each is an ``int`` that remembers its name, also through ``|``, so that ``explain()`` and errors show
``MS_REC|MS_SLAVE`` and not 540672. Values are the same on every architecture that isolate supports.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from typing_extensions import Self


class Constant(int):
    """An ``int`` with the kernel's name for it."""

    name: str

    def __new__(cls, value: int, name: str) -> Self:
        self = super().__new__(cls, value)
        self.name = name
        return self

    def __or__(self, other: int) -> Constant:
        value = int(self) | int(other)
        if not other:
            return self
        if not self:
            return other if isinstance(other, Constant) else Constant(value, hex(other))
        return Constant(value, f"{self.name}|{other.name if isinstance(other, Constant) else hex(other)}")

    def __ror__(self, other: int) -> Constant:
        return self | other

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[type[Constant], tuple[int, str]]:
        return Constant, (int(self), self.name)


def flags(**values: int) -> tuple[Constant, ...]:
    """Constants from keyword arguments, in order."""
    return tuple(Constant(v, k) for k, v in values.items())


NOTHING = Constant(0, "0")

# sched.h: namespaces
CLONE_NEWTIME, CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = flags(
    CLONE_NEWTIME=0x80, CLONE_NEWNS=0x20000, CLONE_NEWCGROUP=0x2000000, CLONE_NEWUTS=0x4000000
)
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = flags(
    CLONE_NEWIPC=0x8000000, CLONE_NEWUSER=0x10000000, CLONE_NEWPID=0x20000000, CLONE_NEWNET=0x40000000
)

# fcntl.h
AT_FDCWD = Constant(-100, "AT_FDCWD")
AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_EMPTY_PATH, AT_RECURSIVE = flags(
    AT_SYMLINK_NOFOLLOW=0x100, AT_REMOVEDIR=0x200, AT_EMPTY_PATH=0x1000, AT_RECURSIVE=0x8000
)
O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC = flags(
    O_RDONLY=0, O_WRONLY=1, O_RDWR=2, O_CREAT=0o100, O_EXCL=0o200, O_TRUNC=0o1000
)
O_NOCTTY, O_NONBLOCK, O_CLOEXEC, O_PATH = flags(
    O_NOCTTY=0o400, O_NONBLOCK=0o4000, O_CLOEXEC=0o2000000, O_PATH=0o10000000
)

# mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = flags(
    MS_RDONLY=1, MS_NOSUID=2, MS_NODEV=4, MS_NOEXEC=8, MS_REMOUNT=32, MS_BIND=4096
)
MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED, MNT_DETACH = flags(
    MS_REC=16384, MS_PRIVATE=1 << 18, MS_SLAVE=1 << 19, MS_SHARED=1 << 20, MNT_DETACH=2
)
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = flags(OPEN_TREE_CLONE=1, OPEN_TREE_CLOEXEC=0o2000000)
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = flags(MOVE_MOUNT_F_EMPTY_PATH=4, MOVE_MOUNT_T_EMPTY_PATH=0x40)
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC = flags(FSOPEN_CLOEXEC=1, FSMOUNT_CLOEXEC=1)
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE = flags(
    FSCONFIG_SET_FLAG=0, FSCONFIG_SET_STRING=1, FSCONFIG_SET_FD=5, FSCONFIG_CMD_CREATE=6
)
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = flags(
    MOUNT_ATTR_RDONLY=1, MOUNT_ATTR_NOSUID=2, MOUNT_ATTR_NODEV=4, MOUNT_ATTR_NOEXEC=8
)
MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_IDMAP, MOUNT_ATTR_NOSYMFOLLOW = flags(
    MOUNT_ATTR__ATIME=0x70, MOUNT_ATTR_NOATIME=0x10, MOUNT_ATTR_IDMAP=0x100000, MOUNT_ATTR_NOSYMFOLLOW=0x200000
)
MOUNT_ATTR_RELATIME, MOUNT_ATTR_STRICTATIME = flags(MOUNT_ATTR_RELATIME=0, MOUNT_ATTR_STRICTATIME=0x20)

# stat.h
S_IFMT, S_IFDIR, S_IFCHR, S_IFBLK, S_IFREG, STATX_BASIC_STATS = flags(
    S_IFMT=0o170000, S_IFDIR=0o040000, S_IFCHR=0o020000, S_IFBLK=0o060000, S_IFREG=0o100000, STATX_BASIC_STATS=0x7FF
)

# prctl.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NAME, PR_GET_SECCOMP = flags(
    PR_SET_PDEATHSIG=1, PR_SET_DUMPABLE=4, PR_SET_KEEPCAPS=8, PR_SET_NAME=15, PR_GET_SECCOMP=21
)
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_CAP_AMBIENT = flags(
    PR_CAPBSET_READ=23,
    PR_CAPBSET_DROP=24,
    PR_SET_SECUREBITS=28,
    PR_SET_NO_NEW_PRIVS=38,
    PR_GET_NO_NEW_PRIVS=39,
    PR_CAP_AMBIENT=47,
)
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = flags(PR_CAP_AMBIENT_RAISE=2, PR_CAP_AMBIENT_CLEAR_ALL=4)

PR_CAP_AMBIENT_IS_SET, PR_GET_SECUREBITS = flags(PR_CAP_AMBIENT_IS_SET=1, PR_GET_SECUREBITS=27)

# capability.h
LINUX_CAPABILITY_VERSION_3 = Constant(0x20080522, "_LINUX_CAPABILITY_VERSION_3")

# seccomp.h
SECCOMP_SET_MODE_FILTER, SECCOMP_MODE_FILTER = flags(SECCOMP_SET_MODE_FILTER=1, SECCOMP_MODE_FILTER=2)

# keyctl.h
KEYCTL_GET_KEYRING_ID, KEYCTL_JOIN_SESSION_KEYRING = flags(KEYCTL_GET_KEYRING_ID=0, KEYCTL_JOIN_SESSION_KEYRING=1)
KEY_SPEC_SESSION_KEYRING = Constant(-3, "KEY_SPEC_SESSION_KEYRING")

# magic.h: what statfs says a file lies in
PROC_SUPER_MAGIC, SYSFS_MAGIC = flags(PROC_SUPER_MAGIC=0x9FA0, SYSFS_MAGIC=0x62656572)
