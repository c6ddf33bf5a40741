"""The examples of the page about networks run."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/networks.rst"


@pytest.mark.root
def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("pasta") is None and shutil.which("slirp4netns") is None:
        pytest.skip("neither pasta nor slirp4netns is installed")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", PAGE.read_text(), re.M)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(textwrap.dedent(block), names)
    assert "'db'" in capsys.readouterr().out
    assert (tmp_path / "web.pcapng").stat().st_size > 100
