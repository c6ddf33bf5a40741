"""``ps`` and ``stats`` as tables, once and live: on a terminal, in a pipe, as JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Limits, UnsupportedError, presets
from isolate.tools.cli import live, main
from isolate.tools.cli.containers import Usage
from isolate.tools.cli.showing import binary
from tests.kept import own_records

if TYPE_CHECKING:
    from collections.abc import Iterator

LIVE = argparse.Namespace(live=True, interval=0.001, count=3, json=False)


def ask() -> live.Rows:
    return [("NAME", "STATE"), ("[bold]web", "running")], [{"name": "web"}]


@pytest.fixture(autouse=True)
def nobodys() -> Iterator[None]:
    """A directory of records of this test's own."""
    with own_records():
        yield


def test_lines_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert live.show(LIVE, ask) == 0
    assert capsys.readouterr().out == "NAME       STATE\n[bold]web  running\n\n" * 3


def test_a_line_of_json_for_each_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert live.show(argparse.Namespace(**{**vars(LIVE), "json": True}), ask) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [[{"name": "web"}]] * 3


@pytest.mark.parametrize("hidden", [False, True])
def test_on_a_terminal(hidden: bool) -> None:
    """With rich and without: the table stands there once, since each drawing takes the place of the one before."""
    if not hidden:
        pytest.importorskip("rich")
    program = (
        f"import sys; sys.modules.update({ {'rich.live': None} if hidden else {} })\n"
        "from tests.tools.test_live import LIVE, ask; from isolate.tools.cli import live; live.show(LIVE, ask)"
    )
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        with subprocess.Popen([sys.executable, "-c", program], stdout=theirs, env=environment) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    piece = screen.read(4096)
                except OSError:  # EIO: the other end is closed
                    break
                if not piece:
                    break
                shown += piece
            assert process.wait(60) == 0
    assert b"[bold]web" in shown
    assert (b"\x1b[H\x1b[J" in shown) is hidden
    assert (b"\x1b[1A" in shown) is not hidden


@pytest.mark.parametrize("words", [["--count", "2"], ["--live", "--interval", "0"], ["--live", "--count", "0"]])
def test_what_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", *words]) == 2
    assert words[-2] in capsys.readouterr().err


def test_a_narrow_terminal_has_fewer_columns() -> None:
    rows = [
        ("NAME", "CPU %", "MEMORY", "PEAK", "READ", "STATE"),
        ("web", "23.4", "468.0K", "740.0K", "1.5M", "running"),
    ]
    assert live.narrowed(rows, 80) == rows
    assert live.narrowed(rows, 30)[0] == ("NAME", "CPU %", "MEMORY", "STATE")
    assert live.narrowed(rows, 1)[1] == ("web", "23.4", "468.0K")


def test_sizes() -> None:
    assert [binary(n) for n in (5, 1536, 3 << 20, 5 << 40)] == ["5 B", "1.5K", "3.0M", "5120.0G"]


@pytest.fixture
def web() -> Iterator[None]:
    box = presets.untrusted(limits=Limits(memory="64M"))
    try:
        box.check()
    except UnsupportedError as error:
        pytest.skip(str(error))
    with box.open(name="web", detached=True) as c:
        c.keep(["sleep", "60"])
        yield


def test_containers(web: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["NAME", "CPU"]
    assert row.split()[0] == "web"
    assert row.split()[-1] == "running"
    usage = Usage(["web", "other"])
    usage.ask()
    found: Any = {each["name"]: each for each in usage.ask()[1]}
    assert found["web"]["cpu_percent"] >= 0
    assert found["web"]["stats"]["pids"] >= 2
    assert (found["other"]["state"], found["other"]["stats"]) == ("not there", None)
    assert main(["ps", "--live", "--count", "2", "--interval", "0.001", "--json"]) == 0
    assert [json.loads(line)[0]["name"] for line in capsys.readouterr().out.splitlines()] == ["web", "web"]
    assert main(["logs", "--json", "web"]) == 0
    assert json.loads(capsys.readouterr().out)["container"] == "web"
