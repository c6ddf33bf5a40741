"""Names and numbers of system calls, of this machine's architecture and of others.

The tables reach Linux 6.18 and are parsed on first use, one architecture at a time; importing this module costs
almost nothing. Architectures are named ``x86_64``, ``i386``, ``x32``, ``aarch64``, ``arm`` (EABI) and ``riscv64``.
Numbers of x32 carry its bit (0x40000000), as the kernel and seccomp filters see them.
"""

from __future__ import annotations

import os
import sys

__all__ = [
    "ARCHITECTURES",
    "X32_BIT",
    "UnknownSyscall",
    "canonical_arch",
    "known",
    "name",
    "names",
    "native_arch",
    "number",
    "since",
    "spellings",
    "table",
]

ARCHITECTURES = ("x86_64", "i386", "x32", "aarch64", "arm", "riscv64")

#: The bit that tells an x32 call from one of x86-64: both come with the same AUDIT_ARCH value.
X32_BIT = 0x40000000

_ARCH_ALIASES = {
    "amd64": "x86_64",
    "x86-64": "x86_64",
    "x86": "i386",
    "i486": "i386",
    "i586": "i386",
    "i686": "i386",
    "arm64": "aarch64",
    "armv6l": "arm",
    "armv7l": "arm",
    "armv8l": "arm",
}

# Other names in use for the same call: of C libraries, of libseccomp, of Docker's profile, of later headers.
_ALIASES = {
    "_llseek": ("llseek",),
    "_newselect": ("newselect",),
    "arm_fadvise64_64": ("fadvise64_64",),
    "arm_sync_file_range": ("sync_file_range2",),
    "newfstatat": ("fstatat",),
}

_numbers: dict[str, dict[str, int]] = {}
_names: dict[str, dict[int, str]] = {}
_ordered: dict[str, tuple[str, ...]] = {}
_since: dict[str, tuple[int, int]] = {}
_native: str | None = None


class UnknownSyscall(ValueError, LookupError):
    """A name that the architecture has no system call for. The message has the nearest names."""

    def __init__(self, name: str, arch: str) -> None:
        self.name = name
        self.arch = arch
        super().__init__(name, arch)

    def __str__(self) -> str:
        import difflib

        others = [other for other in ARCHITECTURES if other != self.arch and self.name in _numbers_of(other)]
        if others:
            return f"{self.arch} has no system call {self.name!r} (it is one of {', '.join(others)})"
        known: set[str] = set()
        for arch in ARCHITECTURES:
            known.update(_numbers_of(arch))
        near = difflib.get_close_matches(self.name, sorted(known), n=2, cutoff=0.6)
        hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        return f"no system call is named {self.name!r}{hint}"


def canonical_arch(arch: str) -> str:
    """The library's name for an architecture (``amd64`` is ``x86_64``, ``arm64`` is ``aarch64``); ValueError if
    unknown."""
    found = _ARCH_ALIASES.get(arch.lower(), arch.lower())
    if found not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}; known are {', '.join(ARCHITECTURES)}")
    return found


def native_arch() -> str:
    """The architecture whose system calls this very Python process makes."""
    global _native
    if _native is None:
        machine = os.uname().machine
        if sys.maxsize <= 2**32:
            # A 32-bit Python under a 64-bit kernel: uname speaks of the kernel.
            machine = {"x86_64": "i386", "aarch64": "arm"}.get(machine, machine)
        _native = canonical_arch(machine)
    return _native


def number(name: str, arch: str | None = None) -> int:
    """The number of a system call; UnknownSyscall (a ValueError) where the architecture has none of that name."""
    arch = native_arch() if arch is None else canonical_arch(arch)
    try:
        return _numbers_of(arch)[name]
    except KeyError:
        raise UnknownSyscall(name, arch) from None


def name(number: int, arch: str | None = None) -> str | None:
    """The name of a system call's number, None where the tables have none."""
    arch = native_arch() if arch is None else canonical_arch(arch)
    table = _names.get(arch)
    if table is None:
        # The first name wins: aliases stand behind the kernel's own.
        table = {}
        for known, value in _numbers_of(arch).items():
            table.setdefault(value, known)
        _names[arch] = table
    return table.get(number)


def names(arch: str | None = None) -> tuple[str, ...]:
    """Every system call of an architecture, in the order of the numbers, without aliases."""
    arch = native_arch() if arch is None else canonical_arch(arch)
    found = _ordered.get(arch)
    if found is None:
        name(0, arch)
        found = _ordered[arch] = tuple(_names[arch][value] for value in sorted(_names[arch]))
    return found


def since(name: str) -> tuple[int, int] | None:
    """The Linux version in which a call appeared on the first architecture that had it, as (major, minor).

    (2, 6) stands for every 2.6 kernel. None for a name that no kernel ever implemented, or that is unknown.
    """
    if not _since:
        from isolate.kernel.syscall_table import SINCE

        version = (0, 0)
        for word in SINCE.split():
            if word[0].isdigit():
                major, _, minor = word.partition(".")
                version = (int(major), int(minor))
            else:
                _since[word] = version
    return _since.get(name)


def table(arch: str | None = None) -> dict[str, int]:
    """Every name of an architecture's calls, aliases too, with its number. The caller's own copy."""
    return dict(_numbers_of(native_arch() if arch is None else canonical_arch(arch)))


def spellings(name: str) -> tuple[str, ...]:
    """A call's name and the other names of it: ``arm_fadvise64_64`` is also ``fadvise64_64``, on arm."""
    for own, aliases in _ALIASES.items():
        if name == own or name in aliases:
            return (own, *aliases)
    return (name,)


def known(name: str) -> bool:
    """Whether any of the architectures has a call of that name."""
    return since(name) is not None or any(name in _numbers_of(arch) for arch in ARCHITECTURES)


def _numbers_of(arch: str) -> dict[str, int]:
    table = _numbers.get(arch)
    if table is not None:
        return table
    from isolate.kernel.syscall_table import COMMON, TABLES, X32_MISSING

    if arch == "x32":
        own = _parse(TABLES["x32"])
        table = {**_parse(TABLES["x86_64"] + " " + COMMON), **own}
        for missing in X32_MISSING.split():
            del table[missing]
        table = {known: value | X32_BIT for known, value in table.items()}
    else:
        table = _parse(COMMON)
        for word, value in _parse(TABLES[arch]).items():
            if word[0] == "-":
                del table[word[1:]]
            else:
                table[word] = value
    for known, aliases in _ALIASES.items():
        if known in table:
            for alias in aliases:
                table.setdefault(alias, table[known])
    _numbers[arch] = table
    return table


def _parse(text: str) -> dict[str, int]:
    table = {}
    value = 0
    for word in text.split():
        if word[0].isdigit():
            value = int(word)
        else:
            table[word] = value
            value += 1
    return table
