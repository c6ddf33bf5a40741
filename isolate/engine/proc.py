"""Whether /proc tells of the processes that this program knows by their numbers."""

from __future__ import annotations

import contextlib
import errno
import os
import signal

from isolate.engine import native
from isolate.errors import SetupError, UnsupportedError
from isolate.kernel.proc import mount_rows, read, status

__all__ = ["check", "children", "is_ours", "kill_session", "namespace_of", "shows_sandboxes", "silence"]

#: Errors that say that there is no /proc, or none that shows this process.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ESRCH)
_known: dict[tuple[int, int], bool] = {}  # (owner token, device of /proc): each mount of procfs has its own


def is_ours() -> bool:
    """Whether /proc is a proc file system of this process's own pid namespace; False also where it cannot be told.

    In another one's the same number is another process. It lists one number for a process for each pid namespace from
    its own on down to the process's (NSpid, proc_pid_status(5)), so ours has one there. Asked once for each mount.
    """
    try:
        return _ask()
    except OSError:
        return False


def _ask() -> bool:
    """:raises OSError: it cannot be told now: this program is short of descriptors or memory, or a filter refuses."""
    try:
        device = native.lib.iso_device(b"/proc")  # each start asks: this is a tenth of os.stat()
        if device < 0:
            raise OSError(-device, os.strerror(-device), "/proc")
        key = native.owner(), device
        found = _known.get(key)
        if found is None:
            found = _known[key] = len(status().get("NSpid", "").split()) == 1
        return found
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise  # says nothing of /proc: asked again the next time


def check() -> None:
    """Refuse to write to files of a child's in a /proc where its number is another process's.

    :raises UnsupportedError: /proc is absent or of another pid namespace.
    :raises SetupError: it cannot be told now: this program is short of descriptors or memory, or a filter refuses.
    """
    try:
        ours = _ask()
    except OSError as error:
        short = error.errno in (errno.EMFILE, errno.ENFILE)
        raise SetupError(
            error.errno or errno.EIO,
            "look into /proc",
            part="Sandbox",
            path="/proc",
            syscall="openat",
            cause="the limit of open descriptors (RLIMIT_NOFILE, or fs.file-max) is reached" if short else None,
            remedy="close some, or raise it: ulimit -n, systemd's LimitNOFILE=" if short else None,
        ) from None
    if not ours:
        raise UnsupportedError(
            errno.EOPNOTSUPP,
            "write the child's files in /proc (id maps, oom_score_adj)",
            part="Sandbox",
            path="/proc",
            cause="/proc is of another pid namespace" if os.path.lexists("/proc/self") else "there is no /proc here",
            remedy="mount a /proc of this pid namespace: mount -t proc proc /proc (or unshare --mount-proc)",
        )


def shows_sandboxes() -> bool:
    """Whether a walk over /proc finds what runs in a sandbox: it is ours, and hides nothing (``hidepid=``).

    Init cannot be traced, and what cannot be traced is what ``hidepid`` hides from anybody but root.
    """
    if not is_ours():
        return False
    return os.geteuid() == 0 or not _hides()


def _hides() -> bool:
    try:
        device = os.stat("/proc").st_dev
        rows = list(mount_rows(read("/proc/self/mountinfo")))
    except OSError:
        return True
    number = f"{os.major(device)}:{os.minor(device)}"
    for row in rows:
        hidden = [option[8:] for option in row.super_options if option.startswith("hidepid=")]
        if row.device == number and hidden:
            return hidden[0] not in ("0", "off")
    return False


def children(pid: int) -> list[int]:
    """Process ids of the children of all threads of a process; none where that cannot be seen."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            found += map(int, read(f"/proc/{pid}/task/{thread}/children").split())
        except OSError:
            continue
    return found


def kill_session(leader: int, namespace: int) -> int:
    """Kill the processes of a session whose leader is dead, in a pid namespace (its inode); how many there were.

    As long as one of them is left the number is nobody else's.
    """
    if not is_ours() or leader <= 1:
        return 0
    seen = 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == leader:
            continue
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(int(name))
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    session = int(file.read().rpartition(b")")[2].split()[3])
                # The pidfd's process was that process while the file was read, or it is dead.
                if session == leader and os.stat(f"/proc/{name}/ns/pid").st_ino == namespace:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    seen += 1
            finally:
                os.close(pidfd)
    return seen


def silence(launcher: int) -> None:
    """Kill what runs below a launcher that has been told to end and has not.

    Without a pid namespace a program with our uid can stop it as often as we let it go on. Only where /proc is of our
    pid namespace: processes are found by their numbers there.
    """
    if not is_ours():
        return
    pending = children(launcher)
    for init in list(pending):  # init is the launcher's to kill, who counts on its pid
        pending.remove(init)
        pending += children(init)
    while pending:
        pid = pending.pop()
        pending += children(pid)
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(pid)
            try:
                # The pidfd's process was below the launcher after the pidfd had been opened, or it is dead.
                if _below(pid, launcher):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)


def _below(pid: int, ancestor: int) -> bool:
    for _ in range(1000):
        if pid == ancestor:
            return True
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            return False
        if pid <= 1:
            return False
    return False


def namespace_of(pid: int) -> int | None:
    """The inode of a process's pid namespace, if that is another than ours; else None, also where nobody can tell."""
    try:
        found, own = (os.stat(f"/proc/{who}/ns/pid").st_ino for who in (pid, "self"))
    except OSError:
        return None
    return found if found != own and is_ours() else None
