"""The type checkers know which parts have a way back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.test_typing import run

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

GOOD = """
import isolate

with isolate.NetNamespace() as net:
    net.joined
with isolate.Capabilities({"NET_ADMIN"}), isolate.Rlimits(nofile=10), isolate.Credentials(uid=1):
    pass
with isolate.Sandbox(isolate.NetNamespace()) as box:
    box.parts
with isolate.Tmpfs("/mnt"), isolate.Scheduling(nice=1):
    pass
answer: int = isolate.in_thread(lambda: 42, isolate.NoNewPrivs())
isolate.Seccomp.default().enter()
"""
BAD = {
    "Seccomp": "isolate.Seccomp.default()",
    "Landlock": 'isolate.Landlock(read=["/"])',
    "NoNewPrivs": "isolate.NoNewPrivs()",
    "UserNamespace": "isolate.UserNamespace()",
    "Root": "isolate.Root()",
}


def check(checker: str, *files: Path) -> subprocess.CompletedProcess[str]:
    names, place = map(str, files), files[0].parent
    if checker == "mypy":
        return run("mypy", "--strict", "--cache-dir", str(place / "cache"), *names, cwd=place)
    return run("pyright", "--pythonpath", sys.executable, *names, cwd=place)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", ["mypy", pytest.param("pyright", marks=pytest.mark.slow)])
def test_with_on_an_irreversible_part_is_a_type_error(checker: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(GOOD)
    bad.write_text("import isolate\n\n" + "".join(f"with {code}:\n    pass\n" for code in BAD.values()))
    done = check(checker, good, bad)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "good.py" not in done.stdout, done.stdout
    for name, line in zip(BAD, range(3, 99, 2), strict=False):
        found = [text for text in done.stdout.splitlines() if f"bad.py:{line}:" in text and "__enter__" in text]
        assert found, (name, done.stdout)
