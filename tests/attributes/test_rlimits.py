"""Resource limits: refused when absurd, in force when right, against prlimit(1)."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate import Rlimits, Sandbox, SetupError, UserNamespace, Verdict
from isolate.attributes.rlimits import UNLIMITED, core_goes_to_a_pipe
from isolate.engine.explain import explain
from isolate.engine.plan import Plan

NAMES = [
    "as_", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
]  # fmt: skip  # many names, few lines
BYTES = ["as_", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack"]
WIDE = sorted({*NAMES} - {"nice", "rtprio"})


def python(*parts: object, code: str) -> object:
    return Sandbox(*parts).run([sys.executable, "-c", code], text=True)  # type: ignore[arg-type]


# ---- values ----------------------------------------------------------------------------------------------------------


def test_all_sixteen() -> None:
    assert list(Rlimits.__dataclass_fields__) == NAMES
    assert len(NAMES) == 16


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.sampled_from(WIDE))
def test_pairs(a: int, b: int, name: str) -> None:
    soft, hard = sorted((a, b))
    assert Rlimits(**{name: (soft, hard)}).values()[name] == (soft, hard)
    assert Rlimits(**{name: [soft, "unlimited"]}).values()[name] == (soft, UNLIMITED)  # type: ignore[dict-item]
    if soft != hard:
        with pytest.raises(ValueError, match="above hard"):
            Rlimits(**{name: (hard, soft)})
    with pytest.raises(ValueError, match="above hard"):
        Rlimits(**{name: ("unlimited", hard)})


@given(st.integers(0, 2**20), st.sampled_from([("", 1), ("K", 2**10), ("m", 2**20), ("G", 2**30), ("T", 2**40)]))
def test_sizes(count: int, suffix: tuple[str, int]) -> None:
    for name in BYTES:
        assert Rlimits(**{name: f"{count}{suffix[0]}"}).values()[name] == (count * suffix[1],) * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"nofile": -1},
        {"nofile": 2**63},
        {"nofile": "64K"},
        {"as_": "64X"},
        {"as_": "-1M"},
        {"as_": ""},
        {"nice": 41},
        {"rtprio": 100},
        {"cpu": (1, 2, 3)},
        {"cpu": ()},
        {"as_": "4M\0"},
        {"as_": "²M"},
        {"as_": "99999999999T"},
    ],
    ids=str,
)
def test_absurd_values(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"Rlimits: {next(iter(wrong)).rstrip('_')}"):
        Rlimits(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [1.5, True, b"1", {1}, (None, 1)])
def test_wrong_types(wrong: object) -> None:
    with pytest.raises(TypeError):
        Rlimits(cpu=wrong)  # type: ignore[arg-type]


def test_unknown_names() -> None:
    with pytest.raises(TypeError):
        Rlimits(nofiles=3)  # type: ignore[call-arg]


def test_core_patterns(tmp_path: Path) -> None:
    for text, answer in ((b"core\n", False), (b"|/usr/lib/handler %p\n", True), (b"@/run/socket\n", True)):
        (tmp_path / "pattern").write_bytes(text)
        assert core_goes_to_a_pipe(str(tmp_path / "pattern")) is answer
    assert core_goes_to_a_pipe(str(tmp_path / "missing"))


def test_core_is_1_where_it_goes_to_a_pipe() -> None:
    text = explain(Plan([Rlimits()], euid=0, egid=0))
    assert f"RLIMIT_CORE {int(core_goes_to_a_pipe())} (bytes)" in text
    assert "RLIMIT_CORE" not in explain(Plan([Rlimits(core=None)], euid=0, egid=0))


# ---- in the kernel ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (package util-linux)")
def test_prlimit_sees_the_same() -> None:
    wanted: dict[str, tuple[int, int]] = {}
    for i, name in enumerate(NAMES):
        hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.rstrip('_').upper()}", 10))[1]  # 10: locks
        base = {"as_": 2**34, "data": 2**33, "stack": 2**23, "fsize": 2**30, "nofile": 2000, "cpu": 999, "nproc": 9999}
        top = base.get(name, 40 + i) if hard == -1 else min(hard, base.get(name, 40 + i))
        wanted[name] = (max(0, top - 1), top)
    command = ["prlimit", "--noheadings", "--raw", "--output", "RESOURCE,SOFT,HARD"]
    result = Sandbox(Rlimits(**wanted)).run(command, text=True)
    assert result.returncode == 0, result.stderr
    found = {row[0].lower(): (int(row[1]), int(row[2])) for row in map(str.split, result.stdout.splitlines())}
    expected = {name.rstrip("_"): value for name, value in wanted.items()}
    assert {name: found[name] for name in expected} == expected


def test_unlimited() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard != -1:
        pytest.skip("the caller's own is limited")
    assert Sandbox(Rlimits(cpu="unlimited")).run(["sh", "-c", "ulimit -t"]).stdout == b"unlimited\n"


def test_core_is_off_by_default(tmp_path: Path) -> None:
    """The control: with a limit there is a core file."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "@", "/")) or resource.getrlimit(resource.RLIMIT_CORE)[1] != -1:
        pytest.skip(f"core files do not go to the working directory: {pattern}")
    crash = ["sh", "-c", "kill -SEGV $$"]
    assert Sandbox().run(crash, cwd=str(tmp_path)).returncode == -signal.SIGSEGV
    assert list(tmp_path.iterdir()) == []
    assert Sandbox(Rlimits(core="unlimited")).run(crash, cwd=str(tmp_path)).returncode == -signal.SIGSEGV
    assert [path.name.startswith("core") for path in tmp_path.iterdir()] == [True]


def test_nofile() -> None:
    code = "import os\nfds = [os.dup(0) for _ in range(30)]\nprint(len(fds))"
    denied = python(Rlimits(nofile=20), code=code)
    assert "Too many open files" in denied.stderr  # type: ignore[attr-defined]
    assert python(Rlimits(nofile=64), code=code).stdout == "30\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", range(3, 12))
def test_a_small_nofile_does_not_keep_it_from_starting(count: int) -> None:
    """The program itself may fail (its loader opens files), the setting up may not."""
    result = Sandbox(UserNamespace(), Rlimits(nofile=count)).run(["/bin/sh", "-c", "ulimit -n"], text=True)
    assert result.stdout == f"{count}\n" if result.returncode == 0 else count < 5


def test_fsize(tmp_path: Path) -> None:
    write = ["sh", "-c", f"head -c 10000 /dev/zero > {tmp_path}/file; kill -l $?"]
    assert Sandbox(Rlimits(fsize="4K")).run(write).stdout == b"XFSZ\n"
    assert (tmp_path / "file").stat().st_size == 4096
    assert Sandbox(Rlimits(fsize="16K")).run(write).stdout != b"XFSZ\n"
    assert (tmp_path / "file").stat().st_size == 10000


def test_address_space() -> None:
    code = "try:\n    print(len(bytearray(300_000_000)))\nexcept MemoryError:\n    print('refused')"
    assert python(Rlimits(as_="200M"), code=code).stdout == "refused\n"  # type: ignore[attr-defined]
    assert python(Rlimits(as_="2G"), code=code).stdout == "300000000\n"  # type: ignore[attr-defined]


def test_cpu() -> None:
    result = Sandbox(Rlimits(cpu=(1, 2))).run(["sh", "-c", "while :; do :; done"], timeout=20)
    assert (result.returncode, result.verdict) == (-signal.SIGXCPU, Verdict.CPU_TIME)


def test_raising_a_hard_limit_is_refused() -> None:
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from isolate import Rlimits, Sandbox, SetupError\n"
        "for n in (65, 4096):\n"
        "    try:\n"
        "        Sandbox(Rlimits(nofile=n)).run(['true'])\n"
        "        print('ran')\n"
        "    except SetupError as error:\n"
        "        print(error.errno, error.part, error.syscall, error.cause)\n"
        "print(Sandbox(Rlimits(nofile=64)).run(['true']).returncode)\n"
    )
    from tests.ordinary import as_ordinary_user

    lines = as_ordinary_user(code).splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [[str(errno.EPERM), "Rlimits", "prlimit64"]] * 2
    assert all("CAP_SYS_RESOURCE" in line for line in lines[:2])
    assert lines[2] == "0"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_nofile_beyond_the_kernels_ceiling() -> None:
    ceiling = int(Path("/proc/sys/fs/nr_open").read_text())
    with pytest.raises(SetupError, match=r"fs\.nr_open") as caught:
        Sandbox(Rlimits(nofile=ceiling + 1)).run(["true"])
    assert caught.value.errno == errno.EPERM


def test_the_caller_keeps_its_own() -> None:
    before = subprocess.run(["sh", "-c", "ulimit -a"], capture_output=True, check=True).stdout
    Sandbox(Rlimits(nofile=10, cpu=1, stack="1M")).run(["true"])
    assert subprocess.run(["sh", "-c", "ulimit -a"], capture_output=True, check=True).stdout == before
