"""What is built: for another architecture, with every warning an error, and never from two versions at once."""

from __future__ import annotations

import errno
import json
import os
import re
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import isolate
from isolate.engine import native

ROOT = Path(__file__).resolve().parents[2]
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
    build_by(compiler, sources, target)
    return target


def build_by(compiler: str, sources: Path, target: Path) -> None:
    """Build a launcher with a compiler that the environment names."""
    script = (
        f"import pathlib, runpy; runpy.run_path('_native/build.py')['build_launcher'](pathlib.Path({str(target)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=sources,
        env={**os.environ, "ISOLATE_LAUNCHER_CC": compiler},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


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


@pytest.mark.parametrize(
    "name", ["extension.c", "interp.c", "groups.c", "spawn.c", "state.c", "pidfds.c", "netlink.c", "counters.c"]
)
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


BUILDER = runpy.run_path(str(NATIVE / "build.py")) if NATIVE.is_dir() else {}
FREE, HOSTED = (set(BUILDER.get(f"{program}_SOURCES", ())) for program in ("LAUNCHER", "EXTENSION"))


def test_every_source_is_built() -> None:
    assert {str(path.relative_to(NATIVE)) for path in NATIVE.rglob("*.c")} == FREE | HOSTED


# The launcher's every day: what it reads, a program inside may have made. The extension's are for the long lane.
@pytest.mark.parametrize(
    "name", [*sorted(FREE), *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(HOSTED - FREE))]
)
def test_analyzer_finds_nothing(name: str) -> None:
    compiler = tool("gcc", "gcc")
    flags = ["-std=gnu11", "-O2", "-fanalyzer", "-Wall", "-Wextra", "-Werror", '-DISOLATE_VERSION="0"']
    for freestanding in [name in FREE] + [False] * (name in FREE & HOSTED):
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


@pytest.mark.slow  # six seconds; tests/pythons runs the everyday tests of such a wheel
@pytest.mark.timeout(300)
def test_wheel_serves_every_python_from_3_10_on(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_")
    assert wheel.name == f"isolate_linux-{native.VERSION}-cp310-abi3-{platform}.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {"isolate/py.typed", "isolate/_launcher", "isolate/_native.abi3.so", "isolate/__init__.py"} <= names
        assert not [n for n in names if n.startswith(("tests", "docs", "examples", "benchmarks", "_native"))]


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_types_of_the_installed_wheel_are_complete(wheel: Path, tmp_path: Path) -> None:
    """``--verifytypes`` looks with the first ``python`` of PATH, whatever ``--pythonpath`` says."""
    pytest.importorskip("pyright", reason="pyright is not installed (extra: lint)")
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv").glob("lib/python3*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # What the types name beside the standard library.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pyright", "--verifytypes", "isolate", "--ignoreexternal", "--outputjson"]

    def report(path: str) -> Any:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout)

    found = report(f"{tmp_path}/venv/bin")["typeCompleteness"]
    unknown = {s["name"]: s["diagnostics"] for s in found["symbols"] if s["isExported"] and not s["isTypeKnown"]}
    assert (found["completenessScore"], unknown) == (1, {})
    assert found["packageRootDirectory"] == str(site / "isolate")
    (site / "isolate/py.typed").unlink()  # the control
    assert "No py.typed file" in str(report(f"{tmp_path}/venv/bin")["generalDiagnostics"])


# ---- packaging -----------------------------------------------------------------------------------------------------


def hook(sources: Path, call: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"import setuptools.build_meta as b, sys; {call}"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=sources,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_42_the_metadata_needs_no_compiler(sources: Path, tmp_path: Path) -> None:
    """pip reads the metadata of a source distribution before it knows that it must be built. The control: a build says
    what is missing."""
    (tmp_path / "meta").mkdir()
    nothing = {"CC": "no-such-compiler", "PATH": str(tmp_path)}
    done = hook(sources, f"b.prepare_metadata_for_build_wheel({str(tmp_path / 'meta')!r})", **nothing)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "meta").glob("*.dist-info/METADATA"))
    built = hook(sources, f"b.build_wheel({str(tmp_path)!r})", **nothing)
    assert built.returncode != 0
    assert "is built with a C compiler, and no-such-compiler is not installed" in built.stderr


def test_42_a_compiler_that_knows_musls_headers_alone(sources: Path, tmp_path: Path) -> None:
    compiler = tool("musl-gcc", "musl-tools")
    target = tmp_path / "launcher.musl"
    build_by(compiler, sources, target)
    run = (
        "import sys; from isolate.engine import native; native.LAUNCHER_PATH = sys.argv[1]\n"
        "from isolate import Sandbox; print(Sandbox().run(['echo', 'hello'], text=True).stdout)"
    )
    ran = subprocess.run([sys.executable, "-c", run, str(target)], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "hello", ran.stderr


FROZEN = """
import importlib.abc, importlib.machinery, importlib.util, os, sys
class Frozen(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        found = importlib.machinery.PathFinder.find_spec(name, path) if name.partition(".")[0] == "isolate" else None
        if found is None or not str(found.origin).endswith(".py"):
            return None
        spec = importlib.machinery.ModuleSpec(name, self, is_package=found.submodule_search_locations is not None)
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations[:] = found.submodule_search_locations
        self.sources = {**getattr(self, "sources", {}), name: found.origin}
        return spec
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        with open(self.sources[module.__name__], "rb") as file:
            exec(compile(file.read(), "<frozen>", "exec", dont_inherit=True), module.__dict__)
sys.path.insert(0, sys.argv[1])
sys.meta_path.insert(0, Frozen())
import isolate
from isolate import Sandbox, Seccomp, images, network, presets
assert not hasattr(isolate, "__file__")
import isolate.images.confined.python
print(Sandbox(Seccomp.default()).run(["echo", "hello"], text=True).stdout)
"""


def test_42_a_frozen_program_has_no_file() -> None:
    """As cx_Freeze and others make them: modules from an archive, without ``__file__``."""
    done = subprocess.run([sys.executable, "-c", FROZEN, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "hello", done.stderr


def others() -> list[str]:
    """Other versions of Python on this machine."""
    names = [f"python3.{minor}" for minor in range(10, 15)]
    found = {name: shutil.which(name) for name in names}
    for path in sorted(Path.home().glob(".pyenv/versions/3.1*/bin/python3")):
        found.setdefault(f"python{'.'.join(path.parts[-3].split('.')[:2])}", str(path))
        found[f"python{'.'.join(path.parts[-3].split('.')[:2])}"] = str(path)
    own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return [path for name, path in found.items() if path is not None and name != own]


ISOLATED = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
one = interpreters.create()
run = getattr(interpreters, "run_string")
for _ in range(2):
    try:
        print(run(one, "import isolate\\nisolate.Sandbox"))
    except Exception as error:
        print(error)
print("the end")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_42_one_wheel_for_every_python(sources: Path, tmp_path: Path) -> None:
    pythons = others()
    if not pythons:
        pytest.skip("there is no other version of Python here")
    built = hook(sources, f"b.build_wheel({str(tmp_path)!r})")
    assert built.returncode == 0, built.stderr
    wheel = next(tmp_path.glob("isolate_linux-*-cp310-abi3-linux_*.whl"))
    tried = 0
    for number, python in enumerate(pythons):
        venv = tmp_path / f"venv{number}"
        subprocess.run([python, "-m", "venv", str(venv)], check=True, capture_output=True)
        installed = subprocess.run(
            [venv / "bin/pip", "install", "-q", str(wheel)], capture_output=True, text=True, check=False
        )
        if installed.returncode:
            continue  # cffi cannot be had for it here
        tried += 1
        code = (
            "import isolate; print(isolate.Sandbox(isolate.Seccomp.default()).run(['echo', 'hello'], text=True).stdout)"
        )
        ran = subprocess.run([venv / "bin/python", "-c", code], capture_output=True, text=True, check=False, cwd="/")
        assert ran.stdout.strip() == "hello", f"{python}: {ran.stderr}"
        version = subprocess.run(
            [python, "-c", "import sys; print(sys.version_info[:2] >= (3, 12))"], capture_output=True
        )
        if version.stdout.strip() == b"True":
            # In 3.12.1 the second import ended in "free(): invalid pointer".
            twice = subprocess.run([venv / "bin/python", "-c", ISOLATED], capture_output=True, text=True, check=False)
            assert twice.returncode == 0, f"{python}: {twice.stderr}"
            assert twice.stdout.count("isolate cannot be used in an isolated sub-interpreter") >= 2, twice.stdout
            assert twice.stdout.endswith("the end\n")
    if not tried:
        pytest.skip("cffi cannot be installed here for another Python")
