"""Every public name is in the reference, and what the documentation points at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import isolate

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "\n".join(path.read_text() for path in sorted((ROOT / "docs/reference").glob("*.rst")))
WHOLE_MODULES = set(re.findall(r"automodule:: isolate\.([\w.]+)", REFERENCE))


@pytest.mark.parametrize("name", sorted(set(isolate.__all__) - {"__version__", "PIPE", "STDOUT", "DEVNULL"}))
def test_public_name_is_in_the_reference(name: str) -> None:
    home = getattr(getattr(isolate, name), "__module__", None) or getattr(isolate, name).__name__
    documented = re.search(rf"auto\w+:: isolate\.{name}$", REFERENCE, re.M)
    assert documented or home.removeprefix("isolate.") in WHOLE_MODULES or name in WHOLE_MODULES


def test_files_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    links += re.findall(r"^bash (\S+)", text, re.M)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readmes_second_command_is_what_ci_runs() -> None:
    commands = re.findall(r"^bash (\S+)$", (ROOT / "README.md").read_text(), re.M)
    assert commands == ["examples/run", "tests/run"]
    ci = (ROOT / ".ci/run").read_text()
    assert all(f"bash {command}" in ci for command in commands)


NAMED = re.findall(r"``((?:\w+/)?test_\w+\.py)(?:::(\w+))?``", (ROOT / "docs/threats.rst").read_text())


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_test_that_the_threat_model_names_is_there(file: str, test: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    assert re.search(rf"^def {test}\(", text, re.M) if test else "def test_" in text


EQUIVALENTS = re.findall(r"^     - ``(.+?)``", (ROOT / "docs/equivalents.rst").read_text(), re.M)


@pytest.mark.parametrize("code", EQUIVALENTS)
def test_equivalent_is_code_that_works(code: str) -> None:
    names = {name: getattr(isolate, name) for name in isolate.__all__}
    try:
        value = eval(code, names)
    except isolate.SetupError as error:  # nobody has given this user subordinate ids
        if "/etc/subuid" not in str(error):
            raise
        return
    if isinstance(value, isolate.Part):
        assert isolate.Sandbox(value).parts == (value,)
    else:
        assert isinstance(value, (isolate.Result, int, str))


def test_the_readmes_program_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100  # two screens
    program = re.search(r"```python\n(.*?)```", text, re.S)
    shown = re.search(r"```text\n(OK .*?)```", text, re.S)
    assert program
    assert shown
    wanted = [line.partition("#")[0].rstrip() for line in shown[1].splitlines()]
    printed: list[str] = []
    for code in (program[1], program[1].replace("timeout=2", "timeout=20")):  # a busy machine may need more
        try:
            exec(compile(code, "README.md", "exec"), {})
        except isolate.SetupError as error:
            if error.part != "Limits":
                raise
            pytest.skip(f"this user has no cgroup to give: {error.cause}")
        printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        if printed == wanted:
            break
    assert printed == wanted
