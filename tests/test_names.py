"""Every public name has a docstring with its parameters as a list and an example; the examples are run."""

from __future__ import annotations

import asyncio
import doctest
import enum
import inspect
import os

import pytest

import isolate

NAMES = sorted(set(isolate.__all__) - {"__version__", "PIPE", "STDOUT", "DEVNULL", "images", "presets"})
MODULES = {f"presets.{name}": getattr(isolate.presets, name) for name in ("untrusted", "container")}
#: Made by the library, never by a user: their constructors are not for the reference.
MADE = {"Attached", "Context", "Process", "Result", "Container"}


def thing(name: str) -> object:
    return MODULES.get(name) or getattr(isolate, name)


@pytest.mark.parametrize("name", [*NAMES, *MODULES])
def test_parameters_are_a_list(name: str) -> None:
    found = thing(name)
    text = inspect.getdoc(found) or ""
    assert text
    protocol = getattr(found, "_is_protocol", False)
    if name in MADE or protocol or (isinstance(found, type) and issubclass(found, enum.Enum)):
        return
    try:
        parameters = list(inspect.signature(found).parameters.values())  # type: ignore[arg-type]
    except ValueError:  # an exception of C
        return
    wanted = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    assert [p for p in wanted if f":param {p}:" not in text and p not in ("args", "rest")] == []


@pytest.mark.parametrize("name", [*NAMES, *MODULES])
def test_example_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = thing(name)
    monkeypatch.chdir("/")
    names = {word: getattr(isolate, word) for word in isolate.__all__}
    names |= {"os": os, "asyncio": asyncio, "isolate": isolate}
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL | doctest.NORMALIZE_WHITESPACE
    text = inspect.getdoc(found) or ""
    if os.geteuid() == 0:  # examples with a cgroup run as root
        text = text.replace("  # doctest: +SKIP", "")
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    assert test.examples, f"{name} has no example"
    output: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=flags).run(test, out=output.append)
    assert not failed, "".join(output)
