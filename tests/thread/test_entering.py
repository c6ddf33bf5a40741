"""Parts without a way back: ``.enter()``, and the thread that ends with them; and a part of a user's own."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate.engine.native import call
from isolate.kernel import syscalls
from isolate.seccomp import deny

if TYPE_CHECKING:
    from collections.abc import Iterator

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def status(field: str) -> str:
    return Path("/proc/thread-self/status").read_text().split(f"{field}:")[1].split("\n")[0].strip()


def test_no_new_privs_on_one_thread_and_its_children() -> None:
    def body() -> tuple[str, bytes]:
        return status("NoNewPrivs"), subprocess.check_output(["grep", "NoNewPrivs", "/proc/self/status"])

    before = status("NoNewPrivs")
    assert isolate.in_thread(body, isolate.NoNewPrivs()) == ("1", b"NoNewPrivs:\t1\n")
    assert status("NoNewPrivs") == before


def test_landlock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    def body() -> str:
        with pytest.raises(PermissionError):
            (tmp_path / "file").read_text()
        return Path("/etc/passwd").read_text()[:4]

    assert isolate.in_thread(body, isolate.Landlock(read=["/etc", "/proc", sys.prefix, "/usr"])) == "root"
    assert (tmp_path / "file").read_text() == "x"


def test_seccomp() -> None:
    policy = isolate.Seccomp(deny("getppid", errno="EXDEV"), otherwise="allow")
    isolate.in_thread(lambda: status("Seccomp"), policy)
    number = syscalls.number("getppid")
    assert isolate.in_thread(lambda: call(number), policy) == -18
    assert call(number) == os.getppid()


@root
def test_credentials_of_a_whole_thread() -> None:
    def body() -> tuple[tuple[int, int, int], str]:
        with pytest.raises(PermissionError):
            Path("/etc/shadow").read_text()
        return os.getresuid(), status("CapEff")

    assert isolate.in_thread(body, isolate.Credentials(uid=65534, gid=65534)) == ((65534,) * 3, "0" * 16)
    assert os.getresuid() == (0, 0, 0)


@root
def test_kernel_order_whatever_the_order_given() -> None:
    uts = isolate.UtsNamespace(hostname="ordered")
    parts = (isolate.Capabilities(), isolate.NoNewPrivs(), uts, isolate.NetNamespace())
    assert isolate.in_thread(lambda: (os.uname().nodename, status("CapEff")), *parts) == ("ordered", "0" * 16)
    assert os.uname().nodename != "ordered"


def test_errors_come_back_and_the_function_is_not_called() -> None:
    called: list[int] = []
    with pytest.raises(ZeroDivisionError):
        isolate.in_thread(lambda: 1 // 0, isolate.NoNewPrivs())
    with pytest.raises(isolate.SetupError):
        isolate.in_thread(lambda: called.append(1), isolate.NetNamespace(path="/dev/null"))
    with pytest.raises(isolate.ThreadedError):
        isolate.in_thread(lambda: called.append(1), isolate.UserNamespace())
    assert called == []
    assert threading.active_count() == 1 or "isolate-in-thread" not in [t.name for t in threading.enumerate()]


def test_a_failed_way_in_leaves_no_descriptor() -> None:
    gc.collect()  # no descriptor of an earlier test's is closed meanwhile
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(isolate.SetupError):
            isolate.in_thread(int, isolate.Landlock(read=["/proc", "/does-not-exist"]))
    assert set(os.listdir("/proc/self/fd")) <= before


# ---- a part of a user's own ------------------------------------------------------------------------------------


class _Renamed(isolate.Change):
    text = "the name of this thread"
    order = 90

    def __init__(self, name: str) -> None:
        self.name, self.before = name, ""

    def apply(self) -> None:
        self.before = Path("/proc/thread-self/comm").read_text().rstrip("\n")
        Path("/proc/thread-self/comm").write_text(self.name)

    def undo(self) -> None:
        Path("/proc/thread-self/comm").write_text(self.before)


@dataclass(frozen=True)
class Renamed(isolate.Reversible):
    """The kernel's name of the thread."""

    name: str

    def here(self) -> isolate.Change:
        return _Renamed(self.name)

    def steps(self, context: isolate.Context) -> Iterator[isolate.Step]:
        yield from ()


def test_it_works_like_the_librarys_own() -> None:
    def comm() -> str:
        return Path("/proc/thread-self/comm").read_text().strip()

    before = comm()
    with Renamed("mine"):
        assert comm() == "mine"
    with isolate.Sandbox(Renamed("mine"), isolate.Rlimits(nofile=100)):
        assert comm() == "mine"
    assert comm() == before
