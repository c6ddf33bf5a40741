"""A workspace's size is held by a quota of the file system, or by a file system of its own, against whoever writes.

The file system with quotas is made for the test, in a file, and mounted in a mount namespace of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from isolate import SetupError, Workspace, presets
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.leaks import Snapshot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems and sets quotas")
MKFS = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin")
needs_mkfs = pytest.mark.skipif(MKFS is None, reason="there is no mkfs.ext4 (e2fsprogs)")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 with project quotas, in a file."""
    if MKFS is None:
        pytest.skip("there is no mkfs.ext4 (e2fsprogs)")
    path = tmp_path_factory.mktemp("quota") / "image"
    path.touch()
    os.truncate(path, 64 << 20)
    options = ("-O", "quota,project", "-E", "quotatype=prjquota")
    subprocess.run([MKFS, "-q", "-F", *options, str(path)], check=True, capture_output=True)
    return path


def on(image: Path, code: str, options: str = "loop,prjquota") -> str:
    """What Python code prints that has the file system at ``top``."""
    place = image.parent / "top"
    place.mkdir(exist_ok=True)
    place.chmod(0o755)
    script = 'mount -o "$1" "$2" "$3" || exit 77; exec "$4" -c "$5" "$3"'
    whole = f"import os, sys\nfrom isolate import *\ntop = sys.argv[1]\n{code}"
    own = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"]
    command = [*own, options, str(image), str(place), sys.executable, whole]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    if done.returncode == 77:  # a kernel without CONFIG_QFMT_V2, or a container that may not mount
        if os.environ.get("ISOLATE_EMULATED") == "1":
            pytest.fail(done.stderr)
        pytest.skip(f"no such file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


WRITING = """
def written(work, mib):
    command = ["dd", "if=/dev/zero", "of=/workspace/big", "bs=64k", f"count={mib * 16}"]
    return presets.untrusted(work).run(command)
os.mkdir(top + "/d")
"""


@pytest.mark.vm
def test_a_quota_holds_bytes_and_files(image: Path) -> None:
    code = """
with Workspace(top + "/d", size="1M", files=20, hold="quota", contents={"in": "text"}) as work:
    print(work.held, work.usage().files, work.usage().within)
    for mib in (4,):
        result = written(work, mib)
        print(result.verdict, b"quota" in result.stderr, work.usage().size <= 1 << 20, work.usage().within)
    work.write("big", b"")
    many = presets.untrusted(work).run(["sh", "-c", "cd /workspace; for i in $(seq 50); do echo > n$i || exit 3; done"])
    print(many.returncode, work.usage().files, work.read("in"))
with Workspace(top + "/d", size="30M", files=1000) as work:  # the control; and auto takes a quota where there is a path
    print(work.held, written(work, 4).verdict, work.usage().size >> 20)
with Workspace(top + "/d", size="30M", hold="measured") as work:
    print(work.held)
"""
    assert on(image, WRITING + code + "import shutil; shutil.rmtree(top + '/d')").splitlines() == [
        "quota 1 True",
        "EXITED True True True",
        "3 20 b'text'",
        "quota OK 4",
        "measured",
    ]


@pytest.mark.vm
def test_nobody_inside_leaves_the_project(image: Path) -> None:
    """Whoever owns a file may set its project, but in a user namespace; without one the quota is refused."""
    code = """
LEAVE = '''
import fcntl, os, struct
os.chdir("/workspace")
os.mkdir("own")
for name, project, flag in (("own", 0, 0x200), ("own", None, 0), (".", None, 0)):
    fd = os.open(name, os.O_RDONLY)
    flags, *rest = struct.unpack("=5I8x", fcntl.ioctl(fd, 0x801C581F, bytes(28)))
    rest[2] = rest[2] if project is None else project
    try:
        fcntl.ioctl(fd, 0x401C5820, struct.pack("=5I8x", flags & ~0x200 | flag, *rest))
        print("left")
    except OSError as error:
        print(error.strerror)
'''
with Workspace(top + "/d", size="1M", hold="quota") as work:
    told = presets.untrusted(work).run(["python3", "-c", LEAVE], text=True).stdout.splitlines()
    print(len(told), set(told) <= {"Invalid argument", "Operation not permitted"})
    try:
        Sandbox(MountNamespace(), Root(Bind("/"), work)).run(["true"])
    except ConflictError as error:
        print("user namespace" in str(error))
with Workspace(top + "/d", hold="measured") as work:  # the control: the owner can, outside of a user namespace
    os.chdir(top + "/d")
    import subprocess
    found = subprocess.run([sys.executable, "-c", LEAVE.replace("/workspace", top + "/d").replace("own", "other")],
                           capture_output=True, text=True)
    print(found.stdout.split("\\n")[:1])
os.chdir("/")
"""
    assert on(image, WRITING + code + "import shutil; shutil.rmtree(top + '/d')").splitlines() == [
        "3 True",
        "True",
        "['left']",
    ]


@pytest.mark.vm
def test_nothing_of_a_quota_is_left(image: Path) -> None:
    code = """
import fcntl, struct
from isolate.sandbox.project import Project, _quotactl, _Q_GETQUOTA, _attributes
with Workspace(top + "/d", size="1M", hold="quota", contents={"a/b": "x"}) as work:
    number = work._project.number
    held = _quotactl(work._fd, _Q_GETQUOTA, number)
    print(held[0], held[3], _attributes(os.open(top + "/d/a/b", os.O_RDONLY))[3] == number)
fd = os.open(top, os.O_RDONLY)
print(_quotactl(fd, _Q_GETQUOTA, number)[:6])
print([_attributes(os.open(top + path, os.O_RDONLY))[3] for path in ("/d", "/d/a", "/d/a/b")])
os.environ["TMPDIR"] = top
import tempfile; tempfile.tempdir = None
with Workspace(size="1M", hold="quota") as work:
    print(work.held, work.path.startswith(top))
    number = work._project.number
    presets.untrusted(work).run(["sh", "-c", "cd /workspace; mkdir -m 0 shut; echo 1 > f; chmod 0 f"]).check()
print(_quotactl(fd, _Q_GETQUOTA, number)[:6], sorted(set(os.listdir(top)) - {"lost+found", "d"}))
"""
    assert on(image, WRITING + code + "import shutil; shutil.rmtree(top + '/d')").splitlines() == [
        "1024 100001 True",
        "(0, 0, 0, 0, 0, 0)",
        "[0, 0, 0]",
        "quota True",
        "(0, 0, 0, 0, 0, 0) []",
    ]


@pytest.mark.vm
def test_where_there_are_no_quotas(image: Path, tmp_path: Path) -> None:
    code = """
with Workspace(top + "/d") as work:
    print(work.held)
try:
    Workspace(top + "/d", hold="quota")
except SetupError as error:
    print("prjquota" in str(error), "measured" in str(error))
"""
    done = on(image, WRITING + code + "os.rmdir(top + '/d')", "loop,noquota")
    assert done.splitlines() == ["measured", "True True"]


@needs_mkfs
def test_an_image_file_holds_it(clean: Snapshot) -> None:
    try:
        work = Workspace(size="2M", files=100, hold="image", contents={"in": "text"})
    except SetupError as error:
        pytest.skip(f"no image file can be mounted here: {error}")
    with work:
        assert work.held == "image"
        assert work.path is None
        assert work.usage().files == 1
        box = presets.untrusted(work)
        result = box.run(["dd", "if=/dev/zero", "of=/workspace/big", "bs=64k", "count=24"])
        assert result.ok, result.stderr
        result = box.run(["dd", "if=/dev/zero", "of=/workspace/more", "bs=64k", "count=64"])
        assert b"No space left" in result.stderr
        assert work.usage().size < 3 << 20
        many = box.run(["sh", "-c", "cd /workspace; rm big more; for i in $(seq 400); do echo > n$i || exit 3; done"])
        assert many.returncode == 3
        assert work.read("in") == b"text"


def test_who_may_not(tmp_path: Path) -> None:
    for hold in ("quota", "image", "memory"):
        code = (
            f"import isolate\ntry:\n    isolate.Workspace(hold={hold!r})\n"
            "except isolate.SetupError as error: print(error.errno, error.remedy)"
        )
        assert as_ordinary_user(code).startswith("1 hold='measured'")
    with pytest.raises(ValueError, match="hold='image' needs none"):
        Workspace(tmp_path, hold="image")
    with pytest.raises(ValueError, match="quota"):
        Workspace(hold="quotas")
