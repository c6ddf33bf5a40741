"""Groups as files: make, write and read back, list, remove. For what this process does itself, without a launcher."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from isolate.cgroups import devices, refused
from isolate.engine.native import lib
from isolate.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from isolate.cgroups.settings import Setting
    from isolate.engine.finding import Finding

_GROUP: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write(directory: str, file: str, data: bytes, *, step: str = "", part: str = "Cgroup") -> None:
    """Write a value with one write(2).

    :raises SetupError: naming the file.
    """
    path = os.path.join(directory, file)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
    except OSError as error:
        text = step or f"write {data.decode()!r} to {file}"
        group = os.path.dirname(directory)
        passing_on = file == "cgroup.subtree_control"
        findings = refused.making(directory) if passing_on else refused.writing(file, data, group)
        raise _failed(error, text, part, "write", path, findings) from None


def make(directory: str, *, step: str, part: str) -> None:
    """Make a group.

    :raises SetupError: naming the directory.
    """
    try:
        os.mkdir(directory, 0o755)
    except OSError as error:
        raise _failed(error, step, part, "mkdir", directory, refused.making(os.path.dirname(directory))) from None


def _failed(
    error: OSError, step: str, part: str, syscall: str, path: str, findings: Mapping[int, str | Finding]
) -> SetupError:
    found = findings.get(error.errno or 0, "")
    cause, remedy = (found, None) if isinstance(found, str) else (found.cause, found.remedy)
    number = error.errno or errno.EIO
    return SetupError(number, step, part=part, syscall=syscall, path=path, cause=cause or None, remedy=remedy)


def read(directory: str, file: str) -> bytes | None:
    """A file's content; None where the group or the kernel has no such file."""
    try:
        with open(os.path.join(directory, file), "rb", buffering=0) as opened:
            return opened.read()
    except OSError:
        return None


def apply(directory: str, setting: Setting) -> str:
    """Write one limit and read it back; the value as the kernel holds it.

    :raises SetupError: it could not be written, or another value holds.
    """
    step = f"limit {setting.field}: {setting.file} = {setting.data.decode()}"
    if not setting.needed and not os.path.exists(os.path.join(directory, setting.file)):
        return ""
    write(directory, setting.file, setting.data, step=step, part="Limits")
    held = read(directory, setting.readback or setting.file)
    lines = [line.rstrip() for line in (held or b"").split(b"\n")]
    if setting.expect is not None and (setting.expect not in lines if setting.among else held != setting.expect):
        found = "nothing" if held is None else held.decode("ascii", "replace").strip()
        raise SetupError(
            errno.ERANGE,
            step,
            part="Limits",
            path=os.path.join(directory, setting.file),
            cause=f"the kernel holds {found!r} instead",
        )
    return (held or b"").decode("ascii", "replace").strip()


def attach_program(directory: str, program: bytes) -> None:
    """Attach a device program to a v2 group.

    :raises SetupError: without CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN.
    """
    from isolate.engine import native
    from isolate.kernel import syscalls

    ffi = native.ffi
    code, licence = ffi.new("char[]", program), ffi.new("char[]", devices.LICENSE)

    def address(item: object) -> int:
        return int(ffi.cast("intptr_t", item))

    load = ffi.new("char[]", devices.load_attributes(len(program) // 8, address(code), address(licence)))
    fd = native.call(syscalls.number("bpf"), devices.BPF_PROG_LOAD, load, 120)
    if fd < 0:
        raise SetupError(-fd, "load the program that limits devices", part="Limits", syscall="bpf")
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attach = ffi.new("char[]", devices.attach_attributes(group, fd))
        result = native.call(syscalls.number("bpf"), devices.BPF_PROG_ATTACH, attach, 112)
    finally:
        os.close(group)
        os.close(fd)
    if result < 0:
        raise SetupError(
            -result, "attach the program that limits devices", part="Limits", syscall="bpf", path=directory
        )


def walk(directory: str) -> Iterator[int]:
    """A descriptor of a group and then of each below it, open until the next one is asked for.

    By descriptor, up by "..": neither the depth nor the length of a path limits it.
    """
    try:
        fd = os.open(directory, _GROUP)
    except OSError:
        return
    try:
        pending = [_below(fd)]
        yield fd
        while pending:
            name = pending[-1].pop() if pending[-1] else ".."
            try:
                if name == "..":
                    pending.pop()
                    if not pending:
                        return
                following = os.open(name, _GROUP, dir_fd=fd)
            except OSError:
                if name == "..":
                    return
                continue  # removed meanwhile
            os.close(fd)
            fd = following
            if name != "..":
                pending.append(_below(fd))
                yield fd
    finally:
        os.close(fd)


def _below(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def processes(directory: str) -> list[int]:
    """Pids in a group and all below it; 0 stands for a process of another pid namespace."""
    found: list[int] = []
    for group in walk(directory):
        try:
            fd = os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=group)
        except OSError:
            continue
        with open(fd, "rb", buffering=0) as file:
            try:
                found += map(int, file.read().split())
            except OSError:
                continue  # EOPNOTSUPP: a threaded group, whose processes are those of the group above; ENODEV: removed
    return found


def remove(directory: str, timeout: float = 2.0) -> None:
    """Remove a group with the groups below it. What is inside is thawed and killed, and waited for.

    :raises SetupError: EBUSY: processes are left.
    """
    result = lib.iso_group_remove(os.fsencode(directory), int(timeout * 1000))
    if result < 0:
        raise SetupError(-result, "remove the group", part="Cgroup", syscall="rmdir", path=directory)


def kill(directory: str) -> int:
    """SIGKILL to each process in a group and below it that this pid namespace sees; how many got it.

    By their pidfds, not by cgroup.kill: who is born into a group that was killed so, dies
    (``_native/launcher/init.c``).
    """
    return max(0, int(lib.iso_group_kill(os.fsencode(directory))))


def thaw(directory: str) -> None:
    """Let a group of v1's freezer go on, and those below it that were frozen by themselves."""
    lib.iso_group_thaw(os.fsencode(directory))
