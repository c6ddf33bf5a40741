"""``isolate cp``: a file or a directory into an open container, or out of it."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from isolate.errors import SetupError, printable

if TYPE_CHECKING:
    import argparse

    from isolate.sandbox.containers.beneath import FileInfo
    from isolate.sandbox.containers.with_files import WithFiles

__all__ = ["add_command", "copy"]

_COPY = """Copy a file or a directory into an open container, or out of it: NAME:PATH is inside. A directory that stands
at the target gets the copy below it, under its own name; with SOURCE/. it gets what is in the source. A file at the
target is replaced by a file.

Inside it is done as the container's user, and no symbolic link is followed there. Out of it come files and directories;
what else there is (links, devices) is named and left. Set-id bits are left, too."""


def add_command(commands: Any, common: dict[str, Any]) -> None:
    """Its parser."""
    parser = commands.add_parser(
        "cp",
        help="copy files into an open container, or out of it",
        description=_COPY,
        usage="isolate cp [options] SOURCE NAME:TARGET, or NAME:SOURCE TARGET",
        **common,
    )
    parser.add_argument("--max-size", metavar="SIZE", default="1G", help="bytes that are copied at most (default: 1G)")
    parser.add_argument("--max-files", metavar="N", type=int, default=100_000, help="files at most (default: 100000)")
    parser.add_argument("--json", action="store_true", help="print as JSON what is left out")
    parser.add_argument("source", metavar="SOURCE", help="what to copy, here or in a container (NAME:PATH)")
    parser.add_argument("target", metavar="TARGET", help="where to, in a container (NAME:PATH) or here")


def copy(options: argparse.Namespace) -> int:
    """Run it."""
    from isolate.sandbox.containers.detached import reopen

    (of, source), (to, target) = _place(options.source), _place(options.target)
    if (of is None) == (to is None):
        raise ValueError("one of the two is in a container, NAME:PATH, and the other is here (./a:b for a file a:b)")
    bounds = {"max_size": options.max_size, "max_files": options.max_files}
    left: list[FileInfo] = []
    with reopen(str(of or to)) as container:
        if of is None:
            _into(container, source, target, bounds)
        else:
            left = [each for each in _out_of(container, source, target, bounds) if each.saved is None]
    if options.json:
        print(json.dumps({"left_out": [{"path": printable(each.path), "kind": each.kind} for each in left]}))
    else:
        for each in left:
            print(f"isolate: left out, a {each.kind}: {printable(each.path)}", file=sys.stderr)
    return 0


def _place(word: str) -> tuple[str | None, str]:
    """(container, path); None is here."""
    name, colon, path = word.partition(":")
    if not colon or not name or "/" in name or name.startswith("."):
        return None, word
    return name, path or "/"


def _kind(container: WithFiles, path: str) -> str | None:
    """Whether a path inside is a "directory", or "other"; None: nothing is there."""
    try:
        container.list(path, max_files=1)
    except SetupError as error:
        if error.errno == errno.ENOENT:
            return None
        if error.errno == errno.ENOTDIR:
            return "other"
        if error.errno != errno.EMFILE:  # more than one file in it
            raise
    return "directory"


def _own_name(path: str) -> str | None:
    """The name that the copy has in a directory; None: what is in it is copied there."""
    return None if path == "." or path.endswith("/.") else os.path.basename(os.path.abspath(path)) or None


def _into(container: WithFiles, source: str, target: str, bounds: dict[str, Any]) -> None:
    found, name, tree = _kind(container, target), _own_name(source), os.path.isdir(source)
    if found is None and target.endswith("/") and not tree:
        raise ValueError(f"there is no directory {target} inside; a name without / at its end is the file's")
    if found == "other" and tree:
        raise ValueError(f"{target} is a file inside, and {source} a directory")
    if found == "directory" and name is not None:
        target = f"{target}/{name}"
    container.put(source, target, parents=tree, **bounds)


def _out_of(container: WithFiles, source: str, target: str, bounds: dict[str, Any]) -> list[FileInfo]:
    """Fetched beside the target first: half of a file never has its name."""
    name, present = _own_name(f"/{source}"), os.path.isdir(target)
    beside = tempfile.mkdtemp(
        prefix=".isolate-cp-", dir=target if present else os.path.dirname(os.path.abspath(target))
    )
    try:
        found = container.get(glob.escape(source), beside, **bounds)
        came = os.path.join(beside, *_fetched_as(source))
        if not os.path.lexists(came):
            raise SetupError(
                errno.EINVAL if found else errno.ENOENT,
                "fetch files of the container",
                part="Container",
                path=printable(source),
                cause=f"a {found[0].kind}; files and directories are copied" if found else "there is no such file",
            )
        if came == beside:
            os.chmod(beside, 0o755)
        if target.endswith("/") and not present and not os.path.isdir(came):
            raise ValueError(f"there is no directory {target}; a name without / at its end is the file's")
        _move(came, os.path.join(target, name or "") if present else target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return found


def _fetched_as(source: str) -> list[str]:
    """Where Container.get puts it: below the first name that it takes for a pattern, or the last one."""
    names = [name for name in source.split("/") if name not in ("", ".")]
    first = next((at for at, name in enumerate(names) if glob.has_magic(name)), len(names) - 1)
    return names[max(first, 0) :]


def _move(source: str, target: str) -> None:
    """Where both are directories what is in one gets into the other, file by file."""
    if os.path.isdir(source) and not os.path.islink(target.rstrip("/")) and os.path.isdir(target):
        for each in os.listdir(source):
            _move(os.path.join(source, each), os.path.join(target, each))
        return
    os.replace(source, target)
