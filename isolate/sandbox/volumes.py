"""File systems of a bounded size that are mounted nowhere: a tmpfs, and an ext4 in a file. For root on the host."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from typing import TYPE_CHECKING

from isolate.engine.native import call
from isolate.errors import SetupError
from isolate.kernel.syscalls import number

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["image_volume", "memory_volume"]

_OPEN_TREE_CLONE, _AT_EMPTY_PATH = 1, 0x1000
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_NOSUID_NODEV = 0x2 | 0x4
# linux/loop.h
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_CONFIG = struct.Struct("=II232s64x")
_TRIES = 20  # somebody else may take a free device first
_SECONDS = 120.0


def memory_volume(size: int, files: int) -> int:
    """A descriptor of a tmpfs; a negative errno where there can be none that several sandboxes show (Linux 6.15)."""
    return _mounted("tmpfs", (("size", str(size)), ("nr_inodes", str(files + 1)), ("mode", "0755")))


def _mounted(kind: str, options: Iterable[tuple[str, str]]) -> int:
    context = call(number("fsopen"), kind.encode() + b"\0", 1)
    if context < 0:
        return context
    try:
        for name, value in options:
            word = name.encode() + b"\0"
            done = call(number("fsconfig"), context, _FSCONFIG_SET_STRING, word, os.fsencode(value) + b"\0", 0)
            if done < 0:
                return done
        done = call(number("fsconfig"), context, _FSCONFIG_CMD_CREATE, 0, 0, 0)
        mount = call(number("fsmount"), context, 1, _NOSUID_NODEV) if done >= 0 else done
    finally:
        os.close(context)
    if mount < 0:
        return mount
    probe = call(number("open_tree"), mount, b"\0", _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC)
    if probe < 0:
        os.close(mount)
        return probe
    os.close(probe)
    return mount


def image_volume(size: int, files: int) -> int:
    """A descriptor of an ext4 in a file that has no name any more, by a loop device that goes with it.

    :raises SetupError: it cannot be had: a tool, a device or the kernel's support is missing.
    """
    tool = shutil.which("mkfs.ext4") or shutil.which("mkfs.ext4", path="/usr/sbin:/sbin")
    if tool is None:
        raise _refused(errno.ENOENT, "make its file system", "there is no mkfs.ext4", "install e2fsprogs")
    with tempfile.NamedTemporaryFile(prefix="isolate-workspace-") as file:
        # Add the space that the file system itself needs: inodes of 256 bytes, bitmaps, the root and lost+found.
        file.truncate(size + (files + 16) * 256 + size // 64 + (1 << 20))
        command = [tool, "-q", "-F", "-m", "0", "-b", "1024", "-N", str(files + 16), "-O", "^has_journal", file.name]
        done = subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS)
        if done.returncode:
            told = done.stderr.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]
            raise _refused(errno.EIO, "make its file system", told or "mkfs.ext4 failed")
        device, name = _loop(file.fileno())
    with contextlib.closing(os.fdopen(device)):  # the mount holds the device from then on
        mount = _mounted("ext4", (("source", name),))
    if mount < 0:
        raise _refused(-mount, "mount its file system", "this kernel cannot show one that is attached nowhere (6.15)")
    with contextlib.suppress(OSError):
        os.rmdir("lost+found", dir_fd=mount)
    return mount


def _loop(file: int) -> tuple[int, str]:
    """A loop device of a file, freed when nobody has it any more (LO_FLAGS_AUTOCLEAR, loop(4))."""
    try:
        with open("/dev/loop-control", "rb", buffering=0) as control:
            for _ in range(_TRIES):
                name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
                device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
                try:
                    info = struct.pack("=5Q4I", 0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR)
                    fcntl.ioctl(device, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(file, 0, info))
                except OSError as error:
                    os.close(device)
                    if error.errno != errno.EBUSY:
                        raise
                else:
                    return device, name
    except OSError as error:
        raise _refused(error.errno or errno.EIO, "take a loop device", "there is none for this program") from None
    raise _refused(errno.EBUSY, "take a loop device", "others take each that is free")


def _refused(number_: int, step: str, cause: str, remedy: str = "hold='quota', 'memory' or 'measured'") -> SetupError:
    return SetupError(number_, step, part="Workspace", cause=cause, remedy=remedy)
