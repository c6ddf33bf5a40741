"""Files of the host that a program can write: none is left there that gives rights to whoever executes it."""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import (
    PIPE,
    Bind,
    Capabilities,
    Landlock,
    Overlay,
    PidNamespace,
    Root,
    Sandbox,
    Seccomp,
    SetIdFiles,
    Tmpfs,
    UserNamespace,
    attach,
    presets,
)
from isolate.kernel import syscalls
from isolate.landlock.part import landlock_abi
from isolate.seccomp import allow
from isolate.seccomp.host_files import no_set_id_files
from tests.mounts.conftest import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = () if os.geteuid() == 0 else (UserNamespace(),)
PYTHON = [Bind(path) for path in {sys.prefix, sys.base_prefix} if not path.startswith("/usr")]

# Each way to give a file a mode, by the number of the call, as no library's wrapper has it.
WAYS = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
table = json.loads(sys.argv[2])
def call(name, *args):
    words = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    result = libc.syscall(ctypes.c_long(table[name]), *words)
    return -ctypes.get_errno() if result < 0 else result
os.chdir(sys.argv[1])
open("plain", "w").close()
fd = os.open("plain", os.O_RDONLY)
tries = {
    "chmod": (b"plain", 0o4755), "fchmod": (fd, 0o4755), "fchmodat": (-100, b"plain", 0o2755),
    "fchmodat2": (-100, b"plain", 0o6755, 0), "creat": (b"created", 0o4755),
    "open": (b"opened", 0o101, 0o4755), "openat": (-100, b"opened-at", 0o101, 0o4755),
    "mknod": (b"made", 0o104755, 0), "mknodat": (-100, b"made-at", 0o104755, 0),
}
print({name: call(name, *args) < 0 for name, args in tries.items() if name in table})
O_TMPFILE = os.O_TMPFILE | os.O_RDWR
print(call("openat", -100, b".", O_TMPFILE, 0o4755) < 0)
harmless = {
    "chmod": (b"plain", 0o1755), "openat": (-100, b"plain", 0, 0o4755), "mkdirat": (-100, b"d", 0o6755),
    "creat": (b"more", 0o755),
}
print({name: call(name, *args) >= 0 for name, args in harmless.items() if name in table})
print(call("openat2", -100, b"plain", bytes(24), 24))
"""


@pytest.fixture
def public() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="isolate-test-", dir="/var/tmp") as name:
        os.chmod(name, 0o777)
        yield Path(name)


def set_id(directory: Path) -> list[str]:
    """The files there that run with their owner's rights."""
    bits = stat.S_ISUID | stat.S_ISGID
    return sorted(path.name for path in directory.iterdir() if path.is_file() and path.lstat().st_mode & bits)


def tried(public: Path, *parts: Any, at: str = "/w") -> list[str]:
    root = Root(*SYSTEM, *PYTHON, Tmpfs("/tmp"), Bind(public, "/w", read_only=False))
    given = parts if any(isinstance(part, Landlock) for part in parts) else (root, *USER, *parts)
    result = Sandbox(*given).run([sys.executable, "-ISc", WAYS, at, json.dumps(dict(syscalls.table()))], text=True)
    assert result.ok, result.stderr
    return result.stdout.splitlines()


def test_no_file_with_the_bit_is_left(public: Path) -> None:
    ways, temporary, harmless, openat2 = tried(public)
    assert set(eval(ways).values()) == {True}, ways
    assert temporary == "True"
    assert set(eval(harmless).values()) == {True}, harmless
    assert int(openat2) == -38
    assert set_id(public) == []


def test_a_policy_of_ones_own_does_not_take_it_away(public: Path) -> None:
    ways = tried(public, Seccomp(otherwise="allow", foreign="allow"))[0]
    assert set(eval(ways).values()) == {True}
    assert set_id(public) == []


def test_all_of_it_works_where_it_is_asked_for(public: Path) -> None:
    """The control: every way leaves such a file."""
    ways, temporary, harmless, openat2 = tried(public, SetIdFiles())
    assert set(eval(ways).values()) == {False}, ways
    assert temporary == "False"
    assert set(eval(harmless).values()) == {True}, harmless
    assert int(openat2) >= 0
    assert {"opened-at", "made-at"} <= set(set_id(public))  # "plain" has lost the bit again


@pytest.mark.skipif(landlock_abi() == 0, reason="this kernel has no Landlock")
def test_under_landlock_too(public: Path) -> None:
    everything = [f"/{name}" for name in os.listdir("/") if name not in ("var", "proc", "sys")]
    rules = Landlock(execute=[p for p in everything if os.path.isdir(p)], write=[public])
    assert set(eval(tried(public, rules, at=str(public))[0]).values()) == {True}
    assert set_id(public) == []
    assert set(eval(tried(public, rules, SetIdFiles(), at=str(public))[0]).values()) == {False}


def test_where_it_holds(public: Path) -> None:
    """In force where something of the host can be written to, and only there."""
    program = no_set_id_files()

    def holds(*entries: Any, parts: tuple[Any, ...] = ()) -> bool:
        return "no file" in Sandbox(Root(*entries), *parts).explain() or any(
            f"filter of {len(program.program()) // 8} instructions" in line
            for line in Sandbox(Root(*entries), *parts).explain().splitlines()
        )

    assert holds(Bind("/usr"), Bind(public, "/w", read_only=False))
    assert holds(Overlay("/o", lower=["/usr"], upper=public / "u", work=public / "k"))
    assert not holds(Bind("/usr"), Tmpfs("/tmp"), Overlay("/o", lower=["/usr"]))
    assert not holds(Bind(public, "/w", read_only=False), parts=(SetIdFiles(),))


def test_device_nodes_and_whiteouts() -> None:
    policy = no_set_id_files()
    for name, before in (("mknod", (0,)), ("mknodat", (-100, 0))):
        for mode, device, made in (
            (0o020666, 0, True),
            (0o020666, 0x103, False),
            (0o060666, 0x800, False),
            (0o060666, 0, False),
            (0o100644, 0, True),
            (0o010644, 5, True),
        ):
            assert policy.simulate(name, *before, mode, device).makes_call is made, (name, oct(mode), device)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: device nodes, capabilities of files")
def test_no_device_node_and_no_capability_of_a_file(public: Path) -> None:
    (public / "program").write_bytes(Path("/bin/true").read_bytes())
    capability = (0x02000001).to_bytes(4, "little") + (1 << 6).to_bytes(4, "little") + bytes(12)
    script = (
        "import os, sys\n"
        "def tried(f, *a):\n"
        "    try: f(*a); return 0\n"
        "    except OSError as e: return e.errno\n"
        "print(tried(os.mknod, '/w/disk', 0o60666, os.makedev(7, 0)),"
        f" tried(os.setxattr, '/w/program', 'security.capability', {capability!r}))\n"
    )
    root = Root(*SYSTEM, *PYTHON, Bind(public, "/w", read_only=False))
    args = [sys.executable, "-ISc", script]
    assert Sandbox(root, Capabilities.docker()).run(args, text=True).stdout == "1 95\n"
    assert "security.capability" not in os.listxattr(public / "program")
    # The control.
    assert Sandbox(root, Capabilities.docker(), SetIdFiles()).run(args, text=True).stdout == "0 0\n"
    assert "security.capability" in os.listxattr(public / "program")
    assert stat.S_ISBLK((public / "disk").stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_is_attached_is_filtered_and_not_traced(public: Path) -> None:
    """By default with Seccomp.default(), and the files of what it joins get no such bits either."""
    box = Sandbox(Root(*SYSTEM, *PYTHON, Bind(public, "/w", read_only=False)), PidNamespace())
    with box.spawn(["/bin/sleep", "60"]) as inside, attach(inside) as joined:
        leave = ["/bin/sh", "-c", "echo > /w/f; chmod 4755 /w/f"]
        assert not joined.run(leave).ok
        assert set_id(public) == []
        assert joined.sandbox(SetIdFiles()).run(leave).ok  # the control
        assert set_id(public) == ["f"]
        keys = f"import ctypes; print(ctypes.CDLL(None).syscall({syscalls.number('keyctl')}, 0, -3, 0))"
        ask = [sys.executable, "-ISc", keys]
        assert joined.run(ask, text=True).stdout == "-1\n"
        assert joined.sandbox(Seccomp(otherwise="allow")).run(ask, text=True).stdout != "-1\n"


TRACE = """
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
print(libc.ptrace(16, pid, None, None), ctypes.get_errno(), flush=True)  # PTRACE_ATTACH
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_program_of_a_preset_does_not_trace_what_is_attached() -> None:
    """The program waits for the newcomer, tries to trace it, and tells; the control has the debugger's calls."""
    wait = (
        "import os, time\n"
        "def command(pid):\n"
        "    try: return open(f'/proc/{pid}/cmdline', 'rb').read()\n"
        "    except OSError: return b''  # it has ended\n"
        "while True:\n"
        "    pids = [p for p in os.listdir('/proc') if p.isdigit() and b'sleep' + bytes(1) + b'3141' in command(p)]\n"
        "    if pids: break\n"
        "    time.sleep(0.02)\n"
        "sys = __import__('sys'); sys.argv = ['', pids[0]]\n" + TRACE
    )
    for extra, answer in (((), "-1 1"), ((Seccomp.default() + allow("@debug"),), "0 0")):
        box = presets.untrusted(*PYTHON, extra=extra)
        with (
            box.spawn([sys.executable, "-ISc", wait], stdout=PIPE) as program,
            attach(program) as joined,
            joined.spawn(["/bin/sleep", "3141"]),
        ):
            assert program.stdout is not None
            assert program.stdout.readline().decode().strip() == answer
