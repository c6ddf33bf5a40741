"""This Python as a program to start: where its files are, and no more of them than the child needs."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from functools import lru_cache

from isolate.errors import UnsupportedError

__all__ = ["command", "readable"]

#: The modules that the extension needs, and packages for decompression, which are used if they are installed.
_USED = ("_cffi_backend", "isal", "backports.zstd")
_PARENT = os.path.dirname(os.path.abspath(next(iter(sys.modules["isolate"].__path__))))  # frozen there is no __file__
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")


@lru_cache(maxsize=1)
def _program() -> str:
    program = getattr(sys, "_base_executable", None) or sys.executable
    if not program:
        raise UnsupportedError(
            2,
            "find this Python's own program",
            cause="this program embeds Python: sys.executable is empty",
            remedy="set sys.executable to a python3 of the same version",
        )
    return os.path.realpath(program)


@lru_cache(maxsize=1)
def _packages() -> tuple[str, ...]:
    """The directories on the path that hold this package and those that it uses where they are there."""
    found = [_PARENT]
    for name in _USED:
        try:
            spec = importlib.util.find_spec(name)
        except ImportError:
            continue
        if spec is None:
            continue
        for place in spec.submodule_search_locations or [
            spec.origin or ""
        ]:  # a package's directory, or a module's file
            if os.path.isabs(place):
                found.append(os.path.abspath(os.path.join(place, *[".."] * (name.count(".") + 1))))
    return tuple(dict.fromkeys(found))


def command(*arguments: str) -> list[str]:
    """The command line that runs the child's module with these arguments, without site and without environment."""
    code = (
        f"import sys;sys.path+={list(_packages())!r};from isolate.images.confined.child import main;main(sys.argv[1:])"
    )
    return [_program(), "-I", "-S", "-B", "-c", code, *arguments]


@lru_cache(maxsize=1)
def readable() -> tuple[str, ...]:
    """Files and directories that the child reads to get going."""
    paths = [*_SYSTEM, _program(), *(sysconfig.get_path(key) for key in ("stdlib", "platstdlib")), *_packages()]
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            name = line.rstrip("\n").partition("/")[2]
            if ".so" in os.path.basename(name) and not name.endswith(" (deleted)"):
                paths.append(os.path.dirname(f"/{name}"))
    return tuple(path for path in dict.fromkeys(map(os.path.realpath, paths)) if os.path.exists(path))
