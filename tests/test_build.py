"""What is built: for another architecture, with every warning an error, and never from two versions at once."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import isolate
from isolate.engine import native

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "_native"
CROSS = "aarch64-linux-gnu-gcc"
HARD = os.environ.get("ISOLATE_REQUIRE_KERNEL") == "1"

pytestmark = pytest.mark.skipif(not NATIVE.is_dir(), reason="the C sources are not here: an installed package's tests")


def tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed (package: {package})"
        if HARD:
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads: a build writes beside it."""
    copy = tmp_path_factory.mktemp("sources")
    built = shutil.ignore_patterns("*.so", "_launcher", "__pycache__", "*.o")
    for name in ("_native", "isolate"):
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def arm_launcher(sources: Path) -> Path:
    compiler = tool(CROSS, "gcc-aarch64-linux-gnu")
    target = sources / "launcher.aarch64"
    script = (
        "import pathlib, sys; sys.path.insert(0, '_native'); import build\n"
        f"build.build_launcher(pathlib.Path({str(target)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=sources, env={**os.environ, "ISOLATE_LAUNCHER_CC": compiler},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def elf(path: Path) -> tuple[int, int, list[int]]:
    """Machine, number of sections with relocations or dynamic linking, and the types of program headers."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    machine = struct.unpack_from("<H", data, 18)[0]
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<I", data, offset + i * size)[0] for i in range(count)]
    return machine, count, headers


PT_DYNAMIC, PT_INTERP, PT_GNU_STACK = 2, 3, 0x6474E551


def test_launcher_needs_nothing() -> None:
    """Static: no interpreter, no dynamic section, small enough for a vfork and exec of about 0.1 ms."""
    path = Path(native.LAUNCHER_PATH)
    _, _, headers = elf(path)
    assert PT_INTERP not in headers
    assert PT_DYNAMIC not in headers
    assert path.stat().st_size < 65536


def test_launcher_for_aarch64(arm_launcher: Path) -> None:
    machine, _, headers = elf(arm_launcher)
    assert machine == 183  # EM_AARCH64
    assert PT_INTERP not in headers
    assert PT_DYNAMIC not in headers
    assert f"isolate-launcher {native.VERSION}\0".encode() in arm_launcher.read_bytes()


@pytest.mark.parametrize("name", ["extension.c", "interp.c", "groups.c", "spawn.c"])
def test_extension_compiles_for_aarch64(name: str, tmp_path: Path) -> None:
    compiler = tool(CROSS, "gcc-aarch64-linux-gnu")
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", '-DISOLATE_VERSION="0"']
    done = subprocess.run(
        [*command, "-c", str(NATIVE / name), "-o", str(tmp_path / "o")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def refusal(command: list[str], tape: bytes) -> tuple[int, int, int]:
    """Give a launcher a tape in its slot; the (kind, errno, stage) of the record it answers with."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memfd = os.memfd_create("tape")
    os.write(memfd, tape)
    owner = os.pidfd_open(os.getpid())
    null = os.open(os.devnull, os.O_RDWR)
    slots = [null, null, null, theirs.fileno(), memfd, owner]
    lifted = [os.dup(fd) for fd in slots]

    def place() -> None:
        for number, fd in enumerate(lifted):
            os.dup2(fd, number + 200)  # above whatever stands where a slot goes
        for number in range(len(lifted)):
            os.dup2(number + 200, number)

    child = subprocess.Popen(command, preexec_fn=place, close_fds=False)
    try:
        ours.settimeout(30)
        theirs.close()
        record = ours.recv(4096)
        assert child.wait(30) == 1
    finally:
        child.kill()
        child.wait()
        ours.close()
        for fd in {*lifted, memfd, owner, null}:
            os.close(fd)
    kind, error, _, stage = struct.unpack_from("<IiII", record)
    return kind, error, stage


def damaged() -> bytes:
    """A real tape with one bit of its last byte but one turned."""
    data = bytearray(isolate.Sandbox().compile().data)
    data[-2] ^= 1
    return bytes(data)


REFUSED = (native.lib.ISO_RECORD_FAILED, errno.EBADMSG, native.lib.ISO_STAGE_TAPE)


def test_a_damaged_tape_is_refused() -> None:
    assert refusal([native.LAUNCHER_PATH], damaged()) == REFUSED
    assert refusal([native.LAUNCHER_PATH], bytes(4096)) == (REFUSED[0], errno.ENOEXEC, REFUSED[2])


def test_a_damaged_tape_is_refused_on_aarch64(arm_launcher: Path) -> None:
    """The other architecture's launcher runs: entry, stack, system calls, the record's layout are right."""
    emulator = tool("qemu-aarch64-static", "qemu-user-static")
    assert refusal([emulator, str(arm_launcher)], damaged()) == REFUSED


@pytest.mark.parametrize("name", ["launcher.c", "interp.c", "groups.c", "cover.c", "spawn.c", "extension.c"])
def test_analyzer_finds_nothing(name: str) -> None:
    compiler = tool("gcc", "gcc")
    flags = ["-std=gnu11", "-O2", "-fanalyzer", "-Wall", "-Wextra", "-Werror", '-DISOLATE_VERSION="0"']
    variants = {"launcher.c": [True], "cover.c": [True], "interp.c": [True, False], "groups.c": [True, False]}
    for freestanding in variants.get(name, [False]):
        extra = ["-DISO_FREESTANDING", "-ffreestanding", "-fno-builtin"] if freestanding else []
        command = [compiler, *flags, *extra, "-c", str(NATIVE / name), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_analyzer_would_say_so(tmp_path: Path) -> None:
    (tmp_path / "bad.c").write_text("#include <stdlib.h>\nvoid f(void) { char *p = malloc(4); free(p); free(p); }\n")
    command = [tool("gcc", "gcc"), "-fanalyzer", "-Werror", "-c", str(tmp_path / "bad.c"), "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "double-free" in done.stderr


# ---- launcher and extension of one version -----------------------------------------------------------------------


def import_copy(
    directory: Path, change: dict[bytes, bytes] | None, *, remove: bool = False
) -> subprocess.CompletedProcess[str]:
    """Import a copy of the package whose launcher has been changed."""
    package = directory / "isolate"
    shutil.copytree(Path(isolate.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    launcher = package / "_launcher"
    image = launcher.read_bytes()
    for old, new in (change or {}).items():
        assert image.count(old) == 1
        image = image.replace(old, new)
    launcher.unlink()
    if not remove:
        launcher.write_bytes(image)
    script = f"import sys; sys.path.insert(0, {str(directory)!r}); import isolate.engine.native as n; print(n.__file__)"
    return subprocess.run([sys.executable, "-c", script], cwd=directory, capture_output=True, text=True, check=False)


def test_version_mismatch_is_an_import_error(tmp_path: Path) -> None:
    mark = f"isolate-launcher {native.VERSION}\0".encode()
    other = b"isolate-launcher " + b"9" * len(native.VERSION) + b"\0"
    control = import_copy(tmp_path / "control", None)
    assert control.returncode == 0, control.stderr
    assert str(tmp_path / "control") in control.stdout
    done = import_copy(tmp_path / "mixed", {mark: other})
    assert done.returncode == 1
    assert "ImportError: isolate's extension is version" in done.stderr


def test_missing_launcher_is_an_import_error(tmp_path: Path) -> None:
    done = import_copy(tmp_path, None, remove=True)
    assert done.returncode == 1
    assert "ImportError: isolate's launcher is missing" in done.stderr


def test_versions_agree() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    match = re.search(r'^version = "([^"]+)"$', pyproject, re.M)
    assert match
    assert match.group(1) == native.VERSION
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert match.group(1) in changelog


# ---- the wheel ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.timeout(300)
def test_wheel_serves_every_python_from_3_10_on(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_")
    assert wheel.name == f"isolate_linux-{native.VERSION}-cp310-abi3-{platform}.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {"isolate/py.typed", "isolate/_launcher", "isolate/_native.abi3.so", "isolate/__init__.py"} <= names
        assert not [n for n in names if n.startswith(("tests", "docs", "examples", "benchmarks", "_native"))]


@pytest.mark.timeout(300)
def test_wheel_runs_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    """The launcher needs no mode bit (a zip may lose it): it is executed from memory."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    assert not os.access(tmp_path / "isolate/_launcher", os.X_OK)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import isolate\n"
        f"assert isolate.__file__.startswith({str(tmp_path)!r})\n"
        "print(isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace()).run(['true']).verdict)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "OK\n", done.stderr
