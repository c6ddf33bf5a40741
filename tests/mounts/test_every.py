"""What holds for every mount of a root, whatever it is made of, and for what the kernel's own file systems offer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import (
    Bind,
    Capabilities,
    Dev,
    File,
    Mask,
    Mqueue,
    Overlay,
    Proc,
    ReadOnly,
    Rlimits,
    Root,
    Sandbox,
    Sys,
    Tmpfs,
    syscalls,
)
from tests.mounts.conftest import SYSTEM, Shell, mounts
from tests.mounts.test_pseudo import nested

if TYPE_CHECKING:
    from isolate import Part

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]
pytestmark = pytest.mark.skipif(not os.path.exists(PYTHON[0]), reason="needs /usr/bin/python3")


def test_every_mount_is_nosuid_and_nodev(shell: Shell, place: Path) -> None:
    """But for the devices that Dev binds, each read-only so that the node stays as it is, and its terminals."""
    entries = (
        Proc(),
        Sys(),
        Dev(mqueue=True),
        Mqueue("/q"),
        Tmpfs("/t"),
        Bind(place, "/b", read_only=False),
        Bind("/dev", "/hosts-dev"),
        Overlay("/o", lower=["/usr/share"]),
        File("/f", "x"),
        Mask("/b"),
        ReadOnly("/t"),
    )
    table = mounts(shell, *entries)
    assert {"/", "/usr", "/proc", "/proc/sys", "/sys", "/dev", "/dev/shm", "/q", "/t", "/b", "/o", "/f"} <= set(table)
    assert {at for at, options in table.items() if "nosuid" not in options} == set()
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    assert {at for at, options in table.items() if "nodev" not in options} == devices | {"/dev/pts"}
    assert all("ro" in table[at] for at in devices)
    free = mounts(shell, Bind(place, "/b", suid=True, dev=True))["/b"]
    assert not {"nosuid", "nodev"} & set(free), "the control"


#: Open for writing, and closed again: nothing is written.
OPEN = """
import os, sys
for path in sys.argv[1:]:
    try: os.close(os.open(path, os.O_WRONLY))
    except OSError as error: print(error.errno)
    else: print(0)
"""
KNOBS = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hotplug",
    "/proc/sysrq-trigger",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/vm/panic_on_oom",
    "/proc/irq/default_smp_affinity",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/ksm/run",
    "/sys/kernel/profiling",
    "/sys/kernel/kexec_crash_size",
]


@as_root
def test_nothing_that_the_host_runs_or_obeys_can_be_written() -> None:
    """With uid 0 of the host and all its capabilities, so that nothing but the read-only mount refuses."""
    mine = Capabilities(Capabilities.of().permitted)

    def told(*entries: Any) -> dict[str, str]:
        box = Sandbox(Root(*SYSTEM, *entries), mine)
        return dict(zip(KNOBS, box.run([*PYTHON, OPEN, *KNOBS], text=True, check=True).stdout.split(), strict=True))

    free = told(Proc(masked=(), read_only=()), Bind("/sys", read_only=False))
    held = told(Proc(), Sys())
    there = {path for path, error in free.items() if error == "0"}
    assert KNOBS[0] in there
    assert "/proc/sysrq-trigger" in there or not os.path.exists("/proc/sysrq-trigger")
    assert any(path.startswith("/sys") for path in there)
    assert {held[path] for path in there} == {"30"}, held  # EROFS


ATTEMPTS = {
    "remount": "libc.mount(None, b'/m', None, 0x1020, None)",  # MS_REMOUNT | MS_BIND: without MS_RDONLY
    "unmask": "libc.umount2(b'/m/secret', 2)",
    "unmask /proc": "libc.umount2(b'/proc/interrupts', 2)",
    "mount over": "libc.mount(b'none', b'/m', b'tmpfs', 0, None)",
    "spread": "libc.mount(None, b'/', None, 1 << 20, None)",  # MS_SHARED
    "pivot_root": f"libc.syscall({syscalls.number('pivot_root')}, b'/m', b'/m')",
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_no_mount_is_changed_from_inside(attempt: str, parts: tuple[Part, ...], place: Path) -> None:
    """Without CAP_SYS_ADMIN; with it each works, since the mounts are of the sandbox's own namespace."""
    (place / "secret").write_text("secret")
    root = Root(*SYSTEM, Proc(), Bind(place, "/m"), Mask("/m/secret"))
    code = f"import ctypes; libc = ctypes.CDLL(None, use_errno=True); print({ATTEMPTS[attempt]}, ctypes.get_errno())"
    assert Sandbox(root, *parts).run([*PYTHON, code]).stdout == b"-1 1\n"  # EPERM
    free = Sandbox(root, Capabilities({"SYS_ADMIN"}), *parts).run([*PYTHON, code]).stdout
    assert free == b"0 0\n"


@pytest.mark.parametrize(("pattern", "limit"), [("|/bin/false", "1"), ("core", "0")])
def test_core_limit_follows_the_hosts_pattern(pattern: str, limit: str, place: Path) -> None:
    """A handler that core files are piped to runs on the host, and at limit 0 too; not at 1 (core(5))."""
    (place / "pattern").write_text(pattern + "\n")
    code = "print(Sandbox().run(['cat', '/proc/self/limits']).stdout.decode().split('core file size')[1].split()[:2])"
    done = nested(f"mount --bind {place}/pattern /proc/sys/kernel/core_pattern", code)
    assert done.stdout == f"{[limit, limit]}\n", done.stderr


@pytest.mark.vm
@as_root
@pytest.mark.skipif(not os.environ.get("ISOLATE_EMULATED"), reason="sets kernel.core_pattern: in a machine of its own")
def test_no_handler_of_core_files_runs_for_a_sandbox(tmp_path: Path) -> None:
    """It would run on the host, as root, wherever the program that crashed was; and at limit 0, too."""
    sysctl, handler, fifo = Path("/proc/sys/kernel/core_pattern"), tmp_path / "handler", tmp_path / "fifo"
    handler.write_text(f"#!/bin/sh\ncat >/dev/null\necho $1 >{fifo}\n")
    handler.chmod(0o755)
    os.mkfifo(fifo)
    told = os.open(fifo, os.O_RDWR)
    before = sysctl.read_text()
    sysctl.write_text(f"|{handler} %c")  # the limit of whoever crashed
    try:
        crash = ["sh", "-c", "kill -SEGV $$"]
        for box in (Sandbox(), Sandbox(Rlimits(core=0))):  # whose limit is 1
            assert box.run(crash).returncode == -11
        # The controls: with a limit, and without a sandbox at 0.
        assert Sandbox(Rlimits(core="unlimited")).run(crash).returncode == -11
        assert os.read(told, 100) == b"%d\n" % (2**64 - 1)
        assert subprocess.run(["sh", "-c", "ulimit -c 0; kill -SEGV $$"], check=False).returncode == -11
        assert os.read(told, 100) == b"0\n"
        os.set_blocking(told, False)
        with pytest.raises(BlockingIOError):
            os.read(told, 100)
    finally:
        sysctl.write_text(before)
        os.close(told)
