"""The everyday lane's two processes: each test is in one of them, and what fails in one fails the lane."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests import side_by_side
from tests.side_by_side import BESIDE, HERE, NOTHING_COLLECTED, commands, main, suffixed, total, verdict

if TYPE_CHECKING:
    from pathlib import Path


def test_what_runs_beside_is_there() -> None:
    for name in BESIDE:
        assert (HERE / name).exists(), name


@pytest.mark.parametrize(
    ("statuses", "one"),
    [
        ((0, 0), 0),
        ((1, 0), 1),
        ((0, 1), 1),
        ((0, -9), -9),
        ((2, 1), 2),
        ((NOTHING_COLLECTED, 0), 0),
        ((1, NOTHING_COLLECTED), 1),
        ((NOTHING_COLLECTED, NOTHING_COLLECTED), NOTHING_COLLECTED),
    ],
)
def test_the_verdict(statuses: tuple[int, int], one: int) -> None:
    assert verdict(list(statuses)) == one


def test_reports_of_their_own() -> None:
    assert suffixed("--junitxml=a.b/tests.xml") == "--junitxml=a.b/tests-beside.xml"
    assert suffixed("-q") == "-q"


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        ([], 2),
        (["-q", "--continue-on-collection-errors", "--junitxml=o/tests.xml", "--durations=15"], 2),
        (["-m", "slow"], 1),
        (["-q", "-k", "x"], 1),
        (["tests/kernel"], 1),
        (["-q", "tests/kernel"], 1),
        (["-x"], 1),
    ],
)
def test_how_many_processes(options: list[str], processes: int) -> None:
    found = commands(options, "/x")
    assert len(found) == processes
    assert processes == 2 or found == [[sys.executable, "-m", "pytest", *options]]


def test_a_failure_of_each_is_the_lanes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def python(code: str) -> list[str]:
        return [sys.executable, "-c", code, f"--junitxml={tmp_path}/none.xml"]

    monkeypatch.setattr(side_by_side, "commands", lambda *_: [python("print('one')"), python("print('two')")])
    assert main([]) == 0
    assert not list(tmp_path.iterdir())
    text = capfd.readouterr().out
    assert text.index("one") < text.index("two")
    assert "in both processes" not in text
    monkeypatch.setattr(side_by_side, "commands", lambda *_: [python("1 / 0"), python("")])
    assert main([]) == 1
    monkeypatch.setattr(side_by_side, "commands", lambda *_: [python(""), python("1 / 0")])
    assert main([]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().out
    monkeypatch.setattr(side_by_side, "commands", lambda *_: [python("1 / 0")])
    assert main([]) == 1


def test_both_are_counted(tmp_path: Path) -> None:
    commands: list[list[str]] = []
    for name, counts in (("a", (5, 1, 1, 1)), ("b", (7, 0, 0, 2))):
        numbers = " ".join(
            f'{key}="{n}"' for key, n in zip(("tests", "failures", "errors", "skipped"), counts, strict=True)
        )
        (tmp_path / name).write_text(f"<testsuites><testsuite {numbers}/></testsuites>")
        commands.append(["pytest", f"--junitxml={tmp_path / name}"])
    assert total(commands) == "7 passed, 2 failed, 3 skipped in both processes"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_test_is_in_one_of_them(tmp_path: Path) -> None:
    found: list[set[str]] = []
    for command in ([sys.executable, "-m", "pytest"], *commands([], str(tmp_path))):
        done = subprocess.run(
            [*command, "-q", "--collect-only"], cwd=HERE.parent, capture_output=True, text=True, check=True
        )
        found.append(set(re.findall(r"^tests/.*", done.stdout, re.MULTILINE)))
    every, rest, beside = found
    assert len(every) > 4000
    assert beside | rest == every
    assert not beside & rest
