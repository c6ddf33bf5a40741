"""The tables of system calls, beside the kernel's headers and libseccomp's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate.kernel import syscalls

if TYPE_CHECKING:
    from tests.seccomp.tools import Libseccomp

HEADERS = Path("/usr/include/x86_64-linux-gnu/asm")


@pytest.mark.parametrize(
    ("arch", "file", "pattern", "bit"),
    [
        ("x86_64", "unistd_64.h", r"#define __NR_(\w+) (\d+)$", 0),
        ("i386", "unistd_32.h", r"#define __NR_(\w+) (\d+)$", 0),
        ("x32", "unistd_x32.h", r"#define __NR_(\w+) \(__X32_SYSCALL_BIT \+ (\d+)\)$", syscalls.X32_BIT),
    ],
)
def test_kernel_headers(arch: str, file: str, pattern: str, bit: int) -> None:
    if not (HEADERS / file).exists():
        pytest.skip("no headers of linux-libc-dev here")
    found = re.findall(pattern, (HEADERS / file).read_text(), re.MULTILINE)
    assert len(found) > 350
    for name, number in found:
        assert syscalls.number(name, arch) == int(number) | bit, name
    last = max(int(number) for name, number in found)
    older = {n for n in syscalls.names(arch) if syscalls.number(n, arch) & ~bit <= min(last, 450)}
    assert older - {name for name, _ in found} <= {"uretprobe", "uprobe"}


@pytest.mark.parametrize("arch", syscalls.ARCHITECTURES)
def test_libseccomp(arch: str, libseccomp: Libseccomp) -> None:
    from isolate.seccomp import bpf

    word = 0x4000003E if arch == "x32" else bpf.AUDIT_ARCH[arch]
    checked = 0
    for name in syscalls.names(arch):
        theirs = int(libseccomp.ask(f"resolve {word:x} {name}"))
        # Negative: it has no such call there, or knows the name by another architecture alone.
        if theirs >= 0:
            assert theirs == syscalls.number(name, arch), name
            checked += 1
    assert checked > 280, checked


def test_names_and_numbers_agree_both_ways() -> None:
    for arch in syscalls.ARCHITECTURES:
        for name in syscalls.names(arch):
            assert syscalls.name(syscalls.number(name, arch), arch) == name
        assert syscalls.name(100_000, arch) is None
        assert list(syscalls.names(arch)) == sorted(syscalls.names(arch), key=lambda n: syscalls.number(n, arch))


def test_common_numbers_are_common() -> None:
    for name in ("pidfd_open", "clone3", "landlock_create_ruleset", "mseal", "file_setattr"):
        numbers = {syscalls.number(name, arch) & ~syscalls.X32_BIT for arch in syscalls.ARCHITECTURES}
        assert len(numbers) == 1, name
    assert syscalls.number("file_setattr") == 469
    with pytest.raises(syscalls.UnknownSyscall):
        syscalls.number("memfd_secret", "arm")


def test_versions() -> None:
    expected = {
        "read": (1, 0),
        "openat": (2, 6),
        "seccomp": (3, 17),
        "openat2": (5, 6),
        "landlock_add_rule": (5, 13),
        "memfd_secret": (5, 14),
        "cachestat": (6, 5),
        "mseal": (6, 10),
        "open_tree_attr": (6, 15),
        "file_getattr": (6, 17),
        "tuxcall": None,
    }
    assert {name: syscalls.since(name) for name in expected} == expected
    for arch in syscalls.ARCHITECTURES:
        for name in syscalls.names(arch):
            number = syscalls.number(name, arch) & ~syscalls.X32_BIT
            if 424 <= number < 512:
                since = syscalls.since(name)
                assert since is not None, name
                assert since >= (5, 1), name


def test_errors() -> None:
    for name, arch, words in (
        ("opneat", None, "did you mean 'openat'"),
        ("open", "aarch64", "aarch64 has no system call 'open' (it is one of x86_64"),
    ):
        with pytest.raises(syscalls.UnknownSyscall) as caught:
            syscalls.number(name, arch)
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="unknown architecture 'sparc'"):
        syscalls.number("read", "sparc")
    assert syscalls.canonical_arch("amd64") == "x86_64"


def test_the_import_is_light() -> None:
    names = "'isolate.kernel.syscall_table' in sys.modules, 'difflib' in sys.modules"
    code = f"import sys, isolate.kernel.syscalls; print({names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() == ["False", "False"]
