"""``isolate profile``: check a profile, convert one, print the schema."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from isolate.sandbox.box import Sandbox

__all__ = ["add_commands", "any_sandbox", "command"]

_CONVERT = """Print a profile in another form. FILE is a profile (.toml or .json), a preset's name (untrusted),
a bundle's config.json of an OCI runtime, or a seccomp profile as Docker and Podman have them.
What cannot be honoured is an error with its key's path."""


def add_commands(commands: Any, common: dict[str, Any]) -> None:
    """Their parsers."""
    top = commands.add_parser(
        "profile",
        help="a sandbox as a file: check, convert, schema",
        description="A profile is a sandbox as TOML or JSON: isolate run --profile FILE.",
        **common,
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = verbs.add_parser(
        "check",
        help="read a profile, and try on this host all that it says",
        description="Read profiles; say what is wrong with the path of its key, and try on this host what they say.\n"
        "Exit status: 0 if all can be had, 2 if a profile is wrong, 125 if this host cannot do it.",
        **common,
    )
    check.add_argument("--syntax", action="store_true", help="only read them; try nothing")
    check.add_argument("--json", action="store_true", help="as JSON, one line for each")
    check.add_argument("files", nargs="+", metavar="FILE")
    convert = verbs.add_parser("convert", help="print a profile as TOML or JSON", description=_CONVERT, **common)
    convert.add_argument("--to", choices=("toml", "json"), default="toml", help="the form (default: toml)")
    convert.add_argument("--json", dest="to", action="store_const", const="json", help="the same as --to json")
    convert.add_argument("file", metavar="FILE")
    schema = verbs.add_parser("schema", help="print the JSON Schema of profiles", **common)
    schema.add_argument("--json", action="store_true", help="as it is without")


def command(options: argparse.Namespace) -> int:
    """Run one of them."""
    from isolate.tools import profiles

    if options.verb == "schema":
        print(json.dumps(profiles.schema(), indent=2))
        return 0
    if options.verb == "convert":
        sys.stdout.write(profiles.dumps(any_sandbox(options.file), options.to))
        return 0
    return max(_check(path, options) for path in options.files)


def _check(path: str, options: argparse.Namespace) -> int:
    from isolate.errors import SetupError
    from isolate.tools.profiles import ProfileError, load

    found: dict[str, Any] = {"file": path, "ok": True}
    status = 0
    try:
        box = load(path)
        if not options.syntax:
            box.check()
    except ProfileError as error:
        found.update(ok=False, path=error.path, message=error.why.removeprefix(f"{path}: "))
        status = 2
    except SetupError as error:
        found.update(ok=False, message=str(error), cause=error.cause, remedy=error.remedy)
        status = 125
    except OSError as error:
        found.update(ok=False, message=str(error.strerror or error))
        status = 2
    if options.json:
        print(json.dumps(found))
    else:
        from isolate.errors import printable_lines

        at = f"{found['path']}: " if found.get("path") else ""
        print(printable_lines(f"{path}: {'ok' if found['ok'] else at + found['message']}"))
    return status


def any_sandbox(path: str) -> Sandbox:
    """A sandbox from what a file holds."""
    from isolate.tools import profiles

    if path == "untrusted":
        from isolate import presets

        return presets.untrusted()
    data = profiles.parsed(path)
    where = os.path.dirname(os.path.abspath(path))
    if "ociVersion" in data:
        return profiles.from_oci(data, bundle=where)
    if "defaultAction" in data:
        from isolate.sandbox.box import Sandbox
        from isolate.seccomp import Seccomp

        return Sandbox(Seccomp.from_oci(data))
    return profiles.from_data(data, directory=where)
