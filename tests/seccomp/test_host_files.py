"""Files of the host that a program can write: none is left there that gives rights to whoever executes it."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import (
    Bind,
    Capabilities,
    Landlock,
    Overlay,
    Root,
    Sandbox,
    Seccomp,
    SetIdFiles,
    Tmpfs,
    UserNamespace,
    attach,
)
from isolate.landlock.part import landlock_abi
from isolate.seccomp.host_files import no_set_id_files

from ..mounts.conftest import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = () if os.geteuid() == 0 else (UserNamespace(),)
PYTHON = [Bind(path) for path in {sys.prefix, sys.base_prefix} if not path.startswith("/usr")]

# Each way to give a file a mode, by the number of the call, as no library's wrapper has it.
WAYS = """
import os, sys
from isolate.engine import native
from isolate.kernel.syscalls import number, table
def call(name, *args):
    return native.call(number(name), *args)
os.chdir(sys.argv[1])
open("plain", "w").close()
fd = os.open("plain", os.O_RDONLY)
tries = {
    "chmod": (b"plain", 0o4755), "fchmod": (fd, 0o4755), "fchmodat": (-100, b"plain", 0o2755),
    "fchmodat2": (-100, b"plain", 0o6755, 0), "creat": (b"created", 0o4755),
    "open": (b"opened", 0o101, 0o4755), "openat": (-100, b"opened-at", 0o101, 0o4755),
    "mknod": (b"made", 0o104755, 0), "mknodat": (-100, b"made-at", 0o104755, 0),
}
print({name: call(name, *args) < 0 for name, args in tries.items() if name in table()})
O_TMPFILE = os.O_TMPFILE | os.O_RDWR
print(call("openat", -100, b".", O_TMPFILE, 0o4755) < 0)
harmless = {
    "chmod": (b"plain", 0o1755), "openat": (-100, b"plain", 0, 0o4755), "mkdirat": (-100, b"d", 0o6755),
    "creat": (b"more", 0o755),
}
print({name: call(name, *args) >= 0 for name, args in harmless.items() if name in table()})
print(call("openat2", -100, b"plain", bytes(24), 24))
"""


@pytest.fixture
def public() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="isolate-test-", dir="/var/tmp") as name:
        os.chmod(name, 0o777)
        yield Path(name)


def set_id(directory: Path) -> list[str]:
    """The files there that run with their owner's rights."""
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.is_file() and path.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID)
    )


def tried(public: Path, *parts: Any, at: str = "/w") -> list[str]:
    import isolate

    env = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    package = Path(isolate.__file__).parent.parent
    root = Root(*SYSTEM, *PYTHON, Bind(package), Tmpfs("/tmp"), Bind(public, "/w", read_only=False))
    given = parts if any(isinstance(part, Landlock) for part in parts) else (root, *USER, *parts)
    result = Sandbox(*given).run([sys.executable, "-c", WAYS, at], text=True, env=env)
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
    assert len(set_id(public)) == len(eval(ways)) - 3  # the first four are the same file


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
    box = Sandbox(Root(*SYSTEM, *PYTHON, Bind(public, "/w", read_only=False)))
    with box.spawn(["/bin/sleep", "60"]) as inside, attach(inside) as joined:
        done = joined.run(
            ["/bin/sh", "-c", "echo > /w/f; chmod 4755 /w/f; while read a b; do [ $a = Seccomp: ] && echo $b; done"],
            stdin=open("/proc/self/status"),  # noqa: SIM115
        )
        assert done.returncode == 0 or done.stderr
        assert set_id(public) == []
        explained = joined.sandbox().explain()
        assert "system call filter" in explained
        assert joined.sandbox(Seccomp(otherwise="allow")).parts[-1] == Seccomp(otherwise="allow")
        ask = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.ptrace(0, 0, 0, 0), l.syscall(250, 9999))"
        assert joined.run([sys.executable, "-ISc", ask], text=True).stdout == "-1 -1\n"
