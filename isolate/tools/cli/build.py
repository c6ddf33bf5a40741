"""``isolate build``: a Dockerfile becomes an image in the store."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from isolate.build import Step

__all__ = ["command", "options"]


def options(commands: Any, common: dict[str, Any]) -> None:
    """The options of ``isolate build``."""
    build = commands.add_parser(
        "build",
        help="build an image from a Dockerfile, in sandboxes, without a daemon",
        description="Build an image from a Dockerfile. Each RUN is in a sandbox, without a network unless asked for.",
        **common,
    )
    add = build.add_argument
    add("context", nargs="?", default=".", metavar="DIRECTORY", help="where its files are (default: here)")
    add(
        "-f", "--file", metavar="FILE", help="the Dockerfile (default: Dockerfile in the context; - for standard input)"
    )
    add("-t", "--tag", metavar="NAME", help="the image's name in the store")
    add("--target", metavar="STAGE", help="the stage that is wanted (default: the last)")
    add("--build-arg", action="append", default=[], metavar="NAME[=VALUE]", help="a value for ARG")
    add("--secret", action="append", default=[], metavar="id=NAME,src=FILE", help="a file for RUN --mount=type=secret")
    add("--build-context", action="append", default=[], metavar="NAME=DIRECTORY", help="a source for COPY --from=NAME")
    add("--network", action="store_true", help="RUN has the caller's network where it does not say otherwise")
    add("--memory", metavar="SIZE", help="the memory limit of each RUN")
    add("--timeout", type=float, metavar="SECONDS", help="the time limit of each RUN")
    add("--no-cache", action="store_true", help="do every step anew")
    add("--pull", action="store_true", help="pull a base that the store does not have")
    add("--explain", action="store_true", help="show the steps and do nothing")
    add("--store", metavar="DIRECTORY", help="the store (default: $ISOLATE_STORE, or ~/.local/share/isolate)")
    add("--json", action="store_true", help="print one line of JSON with the result")
    add("--quiet", action="store_true", help="print the image's digest alone")


def _pairs(words: list[str], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and option == "--build-arg" and name in os.environ:
            value = os.environ[name]
        elif not equals or not name:
            raise ValueError(f"{option} wants NAME=VALUE, not {word!r}")
        found[name] = value
    return found


def _secrets(words: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for word in words:
        fields = {key: value for key, _, value in (field.partition("=") for field in word.split(","))}
        unknown = set(fields) - {"id", "src", "source", "env", "type"}
        if unknown or "id" not in fields:
            raise ValueError(f"--secret wants id=NAME,src=FILE or id=NAME,env=VARIABLE, not {word!r}")
        if "env" in fields:
            value = os.environb.get(os.fsencode(fields["env"]))
            if value is None:
                raise ValueError(f"--secret id={fields['id']}: there is no variable {fields['env']!r}")
            found[fields["id"]] = value
            continue
        with open(fields.get("src", fields.get("source", fields["id"])), "rb") as file:
            found[fields["id"]] = file.read(1 << 20)
    return found


def command(given: argparse.Namespace) -> int:
    """``isolate build …``."""
    from isolate.build import BuildError
    from isolate.errors import IsolateError, printable_lines

    try:
        return _build(given)
    except BrokenPipeError:
        raise  # whoever read the output has gone: no failure of the build
    except (IsolateError, ValueError, OSError) as error:
        if given.json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        else:
            if isinstance(error, BuildError) and not given.quiet:
                error = BuildError(error.message, line=error.line, step=error.step)  # its output was shown as it came
            print(f"isolate: {printable_lines(str(error))}", file=sys.stderr)
        return 1


def _build(given: argparse.Namespace) -> int:
    from isolate.build import Context, Dockerfile
    from isolate.cgroups import Limits
    from isolate.errors import printable, printable_lines
    from isolate.tools.cli.image import open_store

    if given.file == "-":
        text = sys.stdin.buffer.read(1 << 23)
    else:
        path = given.file or os.path.join(given.context, "Dockerfile")
        try:
            with open(path, "rb") as file:
                text = file.read(1 << 23)
        except FileNotFoundError:
            if not os.path.isdir(given.context):
                raise ValueError(f"there is no directory {given.context}") from None
            raise ValueError(f"there is no {path}; --file FILE names the Dockerfile") from None
    recipe = Dockerfile.parse(text)

    def progress(step: Step) -> None:
        if step.state != "begun":
            mark = "cached " if step.state == "cached" else ""
            print(f"{step.stage} {step.number}/{step.count} {mark}{printable(step.text)}", file=sys.stderr)

    with open_store(given.store) as store:
        if given.explain:
            print(printable_lines(recipe.explain(store, network=given.network)))
            return 0
        built = recipe.built(
            store,
            Context(given.context),
            name=given.tag,
            target=given.target,
            args=_pairs(given.build_arg, "--build-arg"),
            secrets=_secrets(given.secret),
            contexts=_pairs(given.build_context, "--build-context"),
            network=given.network,
            parts=[Limits(memory=given.memory)] if given.memory else [],
            timeout=given.timeout,
            cache=not given.no_cache,
            pull=given.pull,
            progress=None if given.quiet or given.json else progress,
            output=None if given.quiet or given.json else _shown,
        )
    if given.json:
        print(
            json.dumps({"digest": built.image.digest, "id": built.image.id, "done": built.done, "cached": built.cached})
        )
    else:
        print(built.image.digest)
    return 0


def _shown(data: bytes) -> None:
    from isolate.errors import printable_lines

    print(printable_lines(data.decode(errors="backslashreplace").expandtabs()).rstrip("\n"), file=sys.stderr)
