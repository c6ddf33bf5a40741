"""``isolate explain --diff`` and ``--json``: how two sandboxes differ."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from isolate import Limits, presets
from isolate.tools.cli import main
from isolate.tools.cli.summary import holds

if TYPE_CHECKING:
    import pathlib


def explained(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(["explain", *words]) == status
    return capsys.readouterr().out


def test_two_that_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(capsys, "--diff", "untrusted", "-", "--calls") == "  10 of the 10 lines are equal\n"


def test_lines_and_keys(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    profile = tmp_path / "p.toml"
    profile.write_text("version = 1\nextends = 'untrusted'\n[Limits]\npids = 7\n[UtsNamespace]\nhostname = 'b'\n")
    shown = explained(capsys, "--diff", "untrusted", str(profile), status=1).splitlines()
    assert "+ limited      all of it together: pids 7" in shown
    assert "  9 of the 10 lines are equal" in shown
    assert '- UtsNamespace.hostname = "sandbox"' in shown
    assert '+ UtsNamespace.hostname = "b"' in shown
    assert '+ Limits = {"pids": 7}' in shown


def test_entries_and_calls(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tmpfs", "/scratch", "--diff", "-", "untrusted", "--calls"]
    shown = explained(capsys, *words, status=1)
    assert '- Root.entries[] = {"kind": "Tmpfs", "target": "/scratch"}' in shown
    assert "--- -\n+++ untrusted\n" in shown
    assert any(line.startswith("-") and "mount it on /scratch" in line for line in shown.splitlines())
    found = json.loads(explained(capsys, *words, "--json", status=1))
    assert found["keys"] == [{"path": "Root.entries[]", "a": {"kind": "Tmpfs", "target": "/scratch"}, "b": None}]
    assert set(found["holds"]) == {"sees", "may write"}


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(explained(capsys, "--pids", "9", "--json", "--calls"))
    assert found["holds"] == holds(presets.untrusted(limits=Limits(pids=9)))
    assert any("clone3(" in line for line in found["calls"])
    assert "Sandbox(" in json.loads(explained(capsys, "--code", "--json"))["code"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--diff", "untrused", "-"], "did you mean 'untrusted'?"),
        (["--diff", "untrusted", "nowhere.toml"], "nowhere.toml"),
        (["--code", "--as", "bwrap"], "ask for one of them"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["explain", *words]) != 0
    assert message in capsys.readouterr().err


def test_a_refusal_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--json", "--diff", "untrused", "-"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["error"]["type"], "did you mean" in found["message"]) == ("ValueError", True)
