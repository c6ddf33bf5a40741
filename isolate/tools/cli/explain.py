"""``isolate explain``: what holds in a sandbox, how two differ, and the nearest commands of other tools."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from isolate.sandbox.box import Sandbox

__all__ = ["add_command", "command"]

_DESCRIPTION = """\
Say in ten lines what holds in a sandbox: seen, hidden, limited, refused. Runs nothing, needs no privileges.
Takes the options of run, and ignores those of one run.

--diff compares two sandboxes: each is a preset (untrusted, nested, bare), a profile (.toml, .json), the config.json of
an OCI bundle, or a dash for the sandbox of the options."""


def add_command(commands: Any, common: dict[str, Any]) -> argparse.ArgumentParser:
    """Its parser."""
    from isolate.tools.near import TOOLS

    explain: argparse.ArgumentParser = commands.add_parser(
        "explain",
        help="print what a sandbox of these options is, without running anything",
        description=_DESCRIPTION,
        usage="isolate explain [options] [-- PROGRAM ...]",
        **common,
    )
    explain.add_argument("--calls", action="store_true", help="then the steps, with the system calls behind each")
    explain.add_argument("--code", action="store_true", help="print it as Python code")
    explain.add_argument("--diff", nargs=2, metavar=("A", "B"), help="print what is other in sandbox B than in A")
    explain.add_argument(
        "--as", dest="tool", choices=TOOLS, help="print the nearest command of another tool, and what that has not"
    )
    return explain


def command(options: argparse.Namespace, box: Sandbox) -> int:
    """Print it. Exit status: 0; with ``--diff`` 1 where the two differ, as diff(1) has it."""
    if sum(map(bool, (options.code, options.diff, options.tool))) > 1:
        raise ValueError("--code, --diff and --as are three answers: ask for one of them")
    if options.diff:
        return _differences(options, *(_named(word, box) for word in options.diff))
    if options.tool:
        from isolate.tools.near import near

        found = near(box, options.tool, getattr(options, "program", None) or ["PROGRAM"])
        print(json.dumps({"words": found.words, "lacks": found.lacks}) if options.json else found)
        return 0
    if options.code:
        from isolate.tools.cli.code import code

        print(json.dumps({"code": code(box)}) if options.json else code(box))
        return 0
    from isolate.tools.cli.summary import holds, summary

    if options.json:
        print(json.dumps({"holds": holds(box), **({"calls": _steps(box)} if options.calls else {})}))
        return 0
    print(summary(box))
    if options.calls:
        print(f"\n{box.explain()}".rstrip("\n"))
    return 0


def _steps(box: Sandbox) -> list[str]:
    return box.explain().rstrip("\n").split("\n")


def _named(word: str, box: Sandbox) -> Sandbox:
    """The sandbox that a word of ``--diff`` names."""
    from isolate.kernel.checks import nearest
    from isolate.sandbox.box import Sandbox
    from isolate.tools.cli.profile import any_sandbox

    if word == "-":
        return box
    if word == "bare":
        return Sandbox()
    if word in ("untrusted", "nested"):
        from isolate import presets

        return presets.untrusted() if word == "untrusted" else presets.nested()
    if not word.endswith((".toml", ".json")):
        hint = nearest(word, ("untrusted", "nested", "bare"))
        raise ValueError(f"--diff must be a preset, a profile (.toml, .json) or -, not {word!r}{hint}")
    return any_sandbox(word)


def _differences(options: argparse.Namespace, a: Sandbox, b: Sandbox) -> int:
    from isolate.errors import printable
    from isolate.tools.cli.summary import holds

    one, other = holds(a), holds(b)
    lines = {name: (one[name], other[name]) for name in one if one[name] != other[name]}
    keys = list(_keys(a, b))
    calls = list(_changed_steps(a, b, options.diff)) if options.calls else []
    if options.json:
        found: dict[str, Any] = {"holds": {name: list(pair) for name, pair in lines.items()}}
        found["keys"] = [{"path": path, "a": before, "b": after} for path, before, after in keys]
        print(json.dumps({**found, **({"calls": calls} if options.calls else {})}))
        return int(bool(lines or keys or calls))
    for name, (before, after) in lines.items():
        print(f"- {name:12} {printable(before)}\n+ {name:12} {printable(after)}")
    if len(lines) < len(one):
        print(f"  {len(one) - len(lines)} of the {len(one)} lines are equal")
    if keys:
        print("\nas a profile has it:")
    for path, before, after in keys:
        for sign, value in (("-", before), ("+", after)):
            if value is not None:
                print(f"{sign} {path} = {printable(json.dumps(value, ensure_ascii=False))}")
    if calls:
        print("\n" + "\n".join(printable(line) for line in calls))
    return int(bool(lines or keys or calls))


def _changed_steps(a: Sandbox, b: Sandbox, names: list[str]) -> Iterator[str]:
    return difflib.unified_diff(_steps(a), _steps(b), fromfile=names[0], tofile=names[1], lineterm="", n=1)


def _keys(a: Sandbox, b: Sandbox) -> Iterator[tuple[str, Any, Any]]:
    """Each key of a profile in which the two differ; None where one of them has it not."""
    from isolate.tools.profiles import ProfileError, to_data

    try:
        one, other = to_data(a), to_data(b)
    except ProfileError as error:
        yield error.path, f"not compared: {error.why}", None
        return
    yield from _compared("", one, other)


def _compared(path: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    if a == b:
        return
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            yield from _compared(f"{path}.{key}" if path else key, a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list):
        gone, new = [each for each in a if each not in b], [each for each in b if each not in a]
        if not gone and not new:  # the same in another order
            yield path, a, b
        for each in gone:
            yield f"{path}[]", each, None
        for each in new:
            yield f"{path}[]", None, each
    else:
        yield path, a, b
