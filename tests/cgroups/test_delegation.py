"""Where groups may be made on unified v2: as root, as an ordinary user with a delegated subtree, in a cgroup namespace,
with a read-only file system, and where nothing was delegated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate.cgroups import files
from tests.cgroups.conftest import UNIFIED, every_group

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not UNIFIED, reason="needs unified v2"),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"),
]

TOP = "/sys/fs/cgroup"
USER = 65533

PROLOGUE = """
import errno, os, sys
import isolate
from isolate.cgroups.hierarchy import discover
own = discover().v2.own
BOMB = [sys.executable, "-I", "-S", "-c", "x = bytearray(160 << 20)"]
def run(**options):
    return isolate.Sandbox(isolate.Limits(memory="64M", pids=20), **options).run(BOMB)
"""


@pytest.fixture
def tree() -> Iterator[Path]:
    """A group with the usual controllers, handed to an ordinary user as cgroup-v2.rst ("Delegation") says."""
    directory = Path(TOP, f"delegated-{os.getpid()}")
    files.write(TOP, "cgroup.subtree_control", b"+memory +pids +cpu")
    directory.mkdir()
    for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
        os.chown(directory / name, USER, USER)
    yield directory
    (directory / "cgroup.kill").write_text("1")
    files.remove(str(directory))


def inside(group: Path, code: str, *, user: int = USER, wrap: str = "") -> str:
    """Run a Python program as a user in a group; what it prints."""
    identity = f"setpriv --reuid={user} --regid={user} --clear-groups" if user else ""
    script = f'echo $$ > {group}/cgroup.procs && exec {wrap} {identity} "$0" -c "$1"'
    command = ["sh", "-c", script, sys.executable, PROLOGUE + code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_in_a_leaf_of_a_delegated_tree(tree: Path) -> None:
    leaf = tree / "leaf"
    leaf.mkdir()
    os.chown(leaf, USER, USER)
    os.chown(leaf / "cgroup.procs", USER, USER)
    code = """
result = run()
print(result.verdict, result.stats.oom_kill >= 1, 0 < result.peak_memory <= 64 << 20)
print(sorted(n for n in os.listdir(os.path.dirname(own)) if n.startswith("isolate-")))
"""
    assert inside(leaf, code) == "OOM True True\n[]\n"


def test_the_own_group_is_busy_and_is_taken_over_only_when_asked(tree: Path) -> None:
    code = """
try:
    run()
except isolate.UnsupportedError as error:
    print(error.errno == errno.EBUSY, "EBUSY" in error.cause, "take_over" in error.remedy)
print(isolate.Cgroup.take_over() == own)
print(discover().v2.own.startswith(own + "/isolate-"), discover().v2.own.endswith("-self"))
print(run().verdict)
with isolate.Cgroup(isolate.Limits(pids=50)) as group:
    print(os.path.dirname(group.path) == own, isolate.Sandbox(group).run(["true"]).verdict)
print(isolate.Cgroup.take_over() == own)
"""
    assert inside(tree, code) == "True True True\nTrue\nTrue True\nOOM\nTrue OK\nTrue\n"
    left = [g for g in every_group() if g.startswith(str(tree))]
    assert [os.path.basename(g).rpartition("-")[2] for g in left] == ["self"]


def test_nothing_delegated() -> None:
    """The message names the file, its owner, and what gives the permission."""
    top = Path(TOP, f"plain-{os.getpid()}")
    top.mkdir()
    try:
        code = """
try:
    run()
except isolate.UnsupportedError as error:
    print(error.errno == errno.EACCES, own in error.cause, "owned by root (uid 0)" in error.cause)
    print("chown" in error.remedy)
print(isolate.Sandbox().run(["true"]).verdict)
"""
        assert inside(top, code) == "True True True\nTrue\nOK\n"
    finally:
        files.remove(str(top))


def test_a_controller_that_is_not_passed_on(tree: Path) -> None:
    leaf = tree / "leaf"
    leaf.mkdir()
    for name in ("", "cgroup.procs"):
        os.chown(leaf / name, USER, USER)
    code = """
try:
    isolate.Sandbox(isolate.Limits(io={os.environ["DISK"]: {"rbps": 1000000}})).run(["true"])
except isolate.UnsupportedError as error:
    print("cgroup.controllers lacks io" in error.cause, error.step)
"""
    disks = sorted(os.listdir("/sys/block"))
    if not disks:
        pytest.skip("no block device")
    os.environ["DISK"] = Path("/sys/block", disks[0], "dev").read_text().strip()
    try:
        assert inside(leaf, code) == "True find a cgroup to make groups in (for io)\n"
    finally:
        del os.environ["DISK"]


def test_in_a_cgroup_namespace(tree: Path) -> None:
    """As in a container: the own group is the root that is seen, and cannot be climbed out of."""
    mount = f"mount --make-rprivate / && umount -l {TOP} && mount -t cgroup2 none {TOP} && exec"
    code = """
print(own, discover().v2.mount)
isolate.Cgroup.take_over()
print(run().verdict)
"""
    wrap = f'unshare --cgroup --mount sh -c \'{mount} "$0" "$@"\''
    assert inside(tree, code, user=0, wrap=wrap) == f"{TOP} {TOP}\nOOM\n"


def test_read_only(tree: Path) -> None:
    mount = f"mount --make-rprivate / && umount -l {TOP} && mount -t cgroup2 -o ro none {TOP} && exec"
    code = """
try:
    run()
except isolate.UnsupportedError as error:
    print(error.errno == errno.EROFS, "read-only" in error.cause)
"""
    wrap = f'unshare --cgroup --mount sh -c \'{mount} "$0" "$@"\''
    assert inside(tree, code, user=0, wrap=wrap) == "True True\n"


def test_none_mounted(tree: Path) -> None:
    code = """
from isolate.cgroups.placement import place
try:
    place(isolate.Limits(pids=1), discover())
except isolate.UnsupportedError as error:
    print("no cgroup file system is mounted" in error.cause)
"""
    code = code.replace("own = ", "")
    wrap = f'unshare --mount sh -c \'mount --make-rprivate / && umount -l {TOP} && exec "$0" "$@"\''
    script = f'exec {wrap} "$0" -c "$1"'
    prologue = "import isolate\nfrom isolate.cgroups.hierarchy import discover\n"
    result = subprocess.run(["sh", "-c", script, sys.executable, prologue + code], capture_output=True, text=True)
    assert result.stdout == "True\n", result.stderr
