"""Groups as files: make, write and read back, list, remove. For what this process does itself, without a launcher."""

from __future__ import annotations

import errno
import os
import select
import time
from typing import TYPE_CHECKING

from isolate.cgroups import devices
from isolate.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.cgroups.settings import Setting


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
        raise SetupError(error.errno or errno.EIO, text, part=part, syscall="write", path=path) from None


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
    lines = [line.rstrip() for line in (held or b"").splitlines()]
    if setting.expect is not None and (setting.expect not in lines if setting.among else held != setting.expect):
        found = "nothing" if held is None else held.decode("ascii", "replace").strip()
        raise SetupError(
            errno.ERANGE, step, part="Limits", path=os.path.join(directory, setting.file),
            cause=f"the kernel holds {found!r} instead",
        )  # fmt: skip
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


def groups_below(directory: str) -> Iterator[str]:
    """The groups beneath a directory, the deepest first, itself last."""
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        names = []
    for name in names:
        yield from groups_below(os.path.join(directory, name))
    yield directory


def processes(directory: str) -> list[int]:
    """Pids in a group and all below it; 0 stands for a process of another pid namespace."""
    found: list[int] = []
    for group in groups_below(directory):
        found += map(int, (read(group, "cgroup.procs") or b"").split())
    return found


def remove(directory: str, timeout: float = 2.0) -> None:
    """Remove a group with the groups below it, waiting while processes that were killed are still on their way out.

    :raises SetupError: EBUSY: processes are left.
    """
    deadline = time.monotonic() + timeout
    while True:
        busy: OSError | None = None
        for group in groups_below(directory):
            try:
                os.rmdir(group)
            except FileNotFoundError:
                continue
            except OSError as error:
                busy = error
        if busy is None:
            return
        if busy.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() >= deadline:
            raise SetupError(
                busy.errno or errno.EIO, "remove the group", part="Cgroup", syscall="rmdir", path=directory
            )
        # v1 tells nobody when a group becomes empty; on v2 the last task leaves a moment after "populated 0".
        select.select([], [], [], 0.001)
