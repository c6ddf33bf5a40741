"""The builder: compiles the launcher and describes the extension to cffi.

Run by setuptools (setup.py), which reads it for the metadata, too: nothing is compiled until a build asks for it. The
environment variables CC, CFLAGS are honoured for the extension as usual; ISOLATE_LAUNCHER_CC names another compiler
for the launcher (a cross compiler).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LAUNCHER_PARTS = "main supervisor birth descendants records init helpers program later parked ahead text memory"
LAUNCHER_SOURCES = [*(f"launcher/{part}.c" for part in LAUNCHER_PARTS.split()), "interp.c", "groups.c", "cover.c"]
EXTENSION_SOURCES = ["extension.c", "interp.c", "groups.c", "spawn.c", "state.c", "pidfds.c", "netlink.c", "counters.c"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# No libc: nothing that expects one (stack protector, unwinder, builtins that become calls).
LAUNCHER_FLAGS = [
    "-std=gnu11",
    "-O2",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-DISO_FREESTANDING",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-fno-pie",
    "-Wl,-z,noexecstack",
    "-Wl,--build-id=none",
    "-Wl,-z,norelro",
    # Code and constants in one segment: a mapping less to make, to copy and to fault in for each process of a start.
    "-Wl,-z,noseparate-code",
    "-s",
]


def version() -> str:
    """The distribution's version, the one that launcher and extension are both stamped with."""
    match = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    if match is None:
        raise SystemExit("pyproject.toml names no version")
    return match.group(1)


def build_launcher(target: Path, compiler: str | None = None) -> None:
    """Compile the launcher to `target`, atomically: a build must not pull a file from under a program that runs."""
    cc = shlex.split(compiler or os.environ.get("ISOLATE_LAUNCHER_CC") or os.environ.get("CC") or "cc")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    flags = [f for f in LAUNCHER_FLAGS if not (f.startswith("-fcf") and "aarch64" in cc[0])]
    stamp = f'-DISOLATE_VERSION="{version()}"'
    flags += kernel_headers(cc)
    command = [*cc, *WARNINGS, *flags, stamp, *(str(HERE / s) for s in LAUNCHER_SOURCES), "-o", str(temporary)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise SystemExit(
            f"isolate-linux is built with a C compiler, and {cc[0]} is not installed (CC names another)"
        ) from None
    temporary.chmod(0o755)
    temporary.replace(target)


def kernel_headers(cc: list[str]) -> list[str]:
    """The directory of the kernel's headers, for a compiler that does not look there: musl-gcc knows only musl's own.

    Behind all others (-idirafter), so that nothing of another C library comes first.
    """
    source = "#include <asm/unistd.h>\n#include <linux/seccomp.h>\n"

    def found(flags: list[str]) -> bool:
        command = [*cc, *flags, "-E", "-x", "c", "-", "-o", os.devnull]
        try:
            return subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode == 0
        except OSError:
            return True  # there is no compiler: said where it is used

    if found([]):
        return []
    machine = os.uname().machine
    places = [place for place in ("/usr/include", f"/usr/include/{machine}-linux-gnu") if os.path.isdir(place)]
    flags = [word for place in places for word in ("-idirafter", place)]
    return flags if found(flags) else []


def declarations() -> str:
    """The functions by hand, the constants read from tape.h: one header of op codes for C and Python."""
    text = "".join((HERE / name).read_text() for name in ("tape.h", "spawn.h", "netlink.h"))
    names = re.findall(r"^#define (ISO_[A-Z0-9_]+) ", text, re.M)
    for body in re.findall(r"enum \{(.*?)\}", text, re.S):
        names += re.findall(r"(ISO_[A-Z0-9_]+)(?:\s*=\s*\d+)?\s*(?:,|$|/)", body.strip(), re.M)
    skip = {"ISO_TAPE_MAGIC"}
    constants = [f"#define {n} ..." for n in names if n not in skip]
    return "\n".join([*constants, (HERE / "declarations.h").read_text()])


ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "isolate._native",
    '#include "tape.h"\n#include "spawn.h"\n#include "interp.h"\n#include "netlink.h"\n#include "counters.h"\n'
    "int64_t iso_call(int64_t number, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f);\n"
    "int64_t iso_check(const uint8_t *tape, uint64_t size);\n"
    "int64_t iso_run_here(uint8_t *tape, uint64_t size, int section, int64_t *registers, uint32_t *failed_op,"
    " uint8_t *skipped);\n"
    "const char *iso_version(void);\n"
    "int64_t iso_group_remove(const char *path, int32_t milliseconds);\n"
    "int64_t iso_group_kill(const char *path);\n"
    "int64_t iso_group_thaw(const char *path);\n",
    sources=[f"_native/{name}" for name in EXTENSION_SOURCES],
    include_dirs=["_native"],
    define_macros=[("ISOLATE_VERSION", f'"{version()}"')],
    extra_compile_args=["-std=gnu11", "-O2", *WARNINGS, "-Wno-unused-parameter", "-Wno-missing-field-initializers"],
    py_limited_api=True,
)

if __name__ == "__main__":
    os.chdir(ROOT)
    build_launcher(ROOT / "isolate" / "_launcher")
    ffi.compile(verbose=True)
