"""Which branches of the C code the tests take: built for counting, beside the tree, and run from there.

    bash tests/coverage/run [--missing] [-- pytest's arguments]
    bash tests/coverage/run --sanitize undefined|address [-- pytest's arguments]

The launcher has no libc, is often killed, and hands its memory on to init and to the payload: what gcov does when a
program ends would count almost nothing. So the counters are pages of a file (counters.c). x86-64 and gcc, as root.

``--sanitize undefined`` builds both with the sanitizer of undefined behaviour in place of the counters; it ends a
process by SIGILL (the launcher has no place for a runtime that would say more). ``--sanitize address`` looks at the
extension's interpreter of tapes, by the tests that run it on the calling thread.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
# -O0: the branches are those of the source.
COUNTED = [
    "-O0",
    "-g0",
    "-fprofile-arcs",
    "-ftest-coverage",
    "-fprofile-update=atomic",
    "-fdata-sections",
    "-fprofile-info-section=gcov_info",
]
UNDEFINED = ["-O1", "-g", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
ADDRESS = ["-O1", "-g", "-fsanitize=address"]
ROOMS = [
    "tests/engine",
    "tests/sandbox",
    "tests/namespaces",
    "tests/mounts",
    "tests/cgroups",
    "tests/thread",
    "tests/faults",
    "tests/kills",
    "tests/leaks",
]
SANITIZED_LANES = {
    "undefined": [["-q", *ROOMS]],
    "address": [["-q", "tests/engine/test_interpreter.py", "tests/engine/test_tape.py"]],
}
#: What takes the branches. The sweeps of faults take those of the errors; the rest is the everyday lane's.
LANES: list[list[str]] = [
    [
        "-q",
        *ROOMS,
        "tests/threats",
        "tests/diagnosis/test_diagnosis.py",
        "tests/attributes/test_credentials.py",
        "tests/seccomp/test_notify.py",
        "tests/seccomp/test_denied.py",
    ],
    ["-q", "tests/native/test_build.py", "-k", "damaged and not aarch64"],
    [
        "-q",
        "-m",
        "slow",
        "tests/faults/test_faults.py",
        "-k",
        "(test_every_call_fails and (ENOMEM or EINTR)) or newuidmap and (EPERM or EAGAIN)",
    ],
    ["-q", "-m", "slow", "tests/sandbox/test_pool.py"],
    ["-q", "-m", "slow", "tests/kills/test_kills.py", "-k", "test_killed_at_each_call and (init or payload)"],
]


def run(*command: object, **options: Any) -> Any:
    return subprocess.run([str(word) for word in command], check=True, **options)


def builder_of(tree: Path) -> Any:
    spec = importlib.util.spec_from_file_location("build", tree / "_native/build.py")
    assert spec is not None
    assert spec.loader is not None
    builder: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    return builder


def sources_of(builder: Any) -> dict[str, list[str]]:
    return {"launcher": builder.LAUNCHER_SOURCES, "extension": builder.EXTENSION_SOURCES}


def object_of(source: str) -> str:
    return Path(source).with_suffix(".o").name


def build(tree: Path, sanitize: str) -> None:
    """Both binaries, counting or with sanitizers, in a copy of the tree."""
    builder = builder_of(tree)
    stamp = f'-DISOLATE_VERSION="{builder.version()}"'
    for kind, sources in sources_of(builder).items():
        objects = tree / "counted" / kind
        objects.mkdir(parents=True)
        counters = objects / "counters"
        free = kind == "launcher"
        flags = [f for f in builder.LAUNCHER_FLAGS if f not in ("-O2", "-s")] if free else ["-std=gnu11", "-fPIC"]
        link = [f for f in flags if not free or f.startswith(("-nostdlib", "-static", "-no-pie", "-Wl"))]
        common = ["gcc", *(f for f in flags if not f.startswith(("-Wl", "-nostdlib", "-static", "-no-pie"))), stamp]
        how = {"": COUNTED, "undefined": UNDEFINED, "address": ["-O1"] if free else ADDRESS}[sanitize]
        for source in sources:
            # What shares its stack with another process and ends there leaves the stack marked as its own.
            looks = ["-O1"] if sanitize == "address" and source in ("spawn.c", "pidfds.c") else how
            run(*common, *looks, "-c", tree / "_native" / source, "-o", objects / object_of(source))
        linked = [objects / object_of(source) for source in sources]
        own: list[object] = []
        after = ["-fsanitize=address"] if sanitize == "address" and not free else []
        if not sanitize:
            run(
                *common,
                "-O1",
                f'-DCOUNTERS="{counters}"',
                f"-I{tree}/_native",
                "-c",
                HERE / "counters.c",
                "-o",
                objects / "counters.o",
            )
            own = [
                f"-Wl,-T,{HERE}/counters.ld",
                *(["-Wl,-e,iso_counted_start"] if free else []),
                objects / "counters.o",
            ]
            after = ["-lgcov"]
        if free:
            target = tree / "isolate/_launcher"
            run("gcc", *link, *linked, *own, *after, "-o", target)
        else:
            builder.ffi.emit_c_code(str(objects / "face.c"))
            includes = [f"-I{tree}/_native", f"-I{sysconfig.get_path('include')}"]
            run(*common, "-O1", *includes, "-c", objects / "face.c", "-o", objects / "face.o")
            target = tree / "isolate/_native.abi3.so"
            run("gcc", "-shared", *linked, objects / "face.o", *own, *after, "-o", target)
        counters.touch()
        os.truncate(counters, 1 << 20)
        counters.chmod(0o666)  # some tests are an ordinary user's


def tell(tree: Path, kind: str) -> None:
    """Write what was counted as gcov's files, beside its notes."""
    if kind == "launcher":
        data = run(tree / "isolate/_launcher", "counters", stdout=subprocess.PIPE).stdout
    else:
        code = "import ctypes, sys; ctypes.PyDLL(sys.argv[1]).iso_tell_counters()"
        data = run(sys.executable, "-c", code, tree / "isolate/_native.abi3.so", stdout=subprocess.PIPE).stdout
    while data:
        name, _, data = data.partition(b"\0")
        size = ctypes.c_uint64.from_buffer_copy(data).value
        (tree / "counted" / kind / Path(os.fsdecode(name)).name).write_bytes(data[8 : 8 + size])
        data = data[8 + size :]


Branches = dict[tuple[str, int, str, int], int]


def counted(tree: Path) -> Branches:
    """How often each branch was taken: by file, line, function and its number in the line."""
    taken: Branches = defaultdict(int)
    native = tree / "_native"
    for kind, sources in sources_of(builder_of(tree)).items():
        tell(tree, kind)
        for source in sources:
            notes = Path(source).with_suffix(".gcda").name
            said = run("gcov", "-j", "-t", "-b", notes, cwd=tree / "counted" / kind, stdout=subprocess.PIPE).stdout
            for file in json.loads(said)["files"]:
                for line in file["lines"]:
                    for number, branch in enumerate(line["branches"]):
                        name = os.path.relpath(file["file"], native)
                        where = name, line["line_number"], line.get("function_name", ""), number
                        taken[where] += branch["count"]
    return taken


def report(taken: Branches, tree: Path, *, missing: bool) -> None:
    """By file, then all together."""
    for name in [*sorted({where[0] for where in taken}), ""]:
        chosen = [count for where, count in taken.items() if name in ("", where[0])]
        hit = sum(count > 0 for count in chosen)
        print(f"{name or 'all':24} {hit:5} of {len(chosen):5} branches, {100 * hit / len(chosen):.1f} %")
    if missing:
        for (name, line, function, number), count in sorted(taken.items()):
            if not count:
                text = (tree / "_native" / name).read_text().splitlines()[line - 1].strip()
                print(f"{name}:{line} {function} branch {number}: {text}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--missing", action="store_true", help="print each branch that was never taken")
    kinds = ("", *SANITIZED_LANES)
    parser.add_argument("--sanitize", choices=kinds, default="", help="look for errors in place of counting")
    parser.add_argument("pytest", nargs="*", help="arguments of one run of pytest, in place of the usual ones")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="isolate-coverage-", dir="/var/tmp") as name:
        tree = Path(name)
        tree.chmod(0o755)
        skipped = shutil.ignore_patterns(".git", ".venv", "*.so", "_launcher", "__pycache__", ".*_cache", "build")
        shutil.copytree(ROOT, tree, ignore=skipped, dirs_exist_ok=True)
        build(tree, options.sanitize)
        env = {**os.environ, "PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"}
        if options.sanitize == "address":
            runtime = run("gcc", "-print-file-name=libasan.so", stdout=subprocess.PIPE, text=True).stdout.strip()
            # Python's own allocations are not looked at. What overflows or is used after its end ends the process.
            env |= {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1", "PYTHONMALLOC": "malloc"}
        where = run(
            sys.executable,
            "-c",
            "import isolate; print(isolate.__file__)",
            cwd="/",
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        assert where.startswith(name), where
        failed = False
        for arguments in [options.pytest] if options.pytest else SANITIZED_LANES.get(options.sanitize, LANES):
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
            failed |= subprocess.run(command, cwd=tree, env=env, check=False).returncode != 0
        if not options.sanitize:
            report(counted(tree), tree, missing=options.missing)
    if failed:
        print("some tests failed: see above")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
