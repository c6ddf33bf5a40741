"""``isolate cp``: a file or a directory into an open container, out of it, or from one to another."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from isolate.errors import SetupError, printable
from isolate.sandbox.containers.copying import write_all

if TYPE_CHECKING:
    import argparse

    from isolate.sandbox.containers.beneath import FileInfo
    from isolate.sandbox.containers.with_files import WithFiles

__all__ = ["add_command", "copy"]

_COPY = """Copy a file or a directory into an open container, out of it, or from one to another: NAME:PATH is inside.
A directory that stands at the target gets the copy below it, under its own name; with SOURCE/. it gets what is in the
source. A file at the target is replaced by a file. With - the other one is a tar archive: it is read from stdin and
unpacked into a directory inside, or written to stdout.

Inside it is done as the container's user, and no symbolic link is followed there. Files and directories come out of it
here; what else there is (links, devices) is named and left. Links are kept in an archive and between containers. Set-id
bits are left, too."""


def add_command(commands: Any, common: dict[str, Any]) -> None:
    """Its parser."""
    parser = commands.add_parser(
        "cp",
        help="copy files into an open container, out of it, or to another",
        description=_COPY,
        usage="isolate cp [options] SOURCE NAME:TARGET, NAME:SOURCE TARGET, or NAME:SOURCE NAME:TARGET",
        **common,
    )
    parser.add_argument("--max-size", metavar="SIZE", default="1G", help="bytes that are copied at most (default: 1G)")
    parser.add_argument("--max-files", metavar="N", type=int, default=100_000, help="files at most (default: 100000)")
    parser.add_argument("--json", action="store_true", help="print as JSON what is left out")
    parser.add_argument(
        "source", metavar="SOURCE", help="what to copy: a path here, NAME:PATH in a container, or - for an archive"
    )
    parser.add_argument(
        "target", metavar="TARGET", help="where to: NAME:PATH in a container, a path here, or - for an archive"
    )


def copy(options: argparse.Namespace) -> int:
    """Run it."""
    from isolate.sandbox.containers.detached import reopen

    (of, source), (to, target) = _place(options.source), _place(options.target)
    if of is None and to is None:
        raise ValueError("one of the two is in a container, NAME:PATH (./a:b is a file a:b here)")
    if target == "-" and to is None and (options.json or os.isatty(1)):
        raise ValueError("an archive is written to stdout: give it a file or a pipe, without --json")
    bounds = {"max_size": options.max_size, "max_files": options.max_files}
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(reopen(str(of or to)))
        if of is None:
            found = _into(container, source, target, bounds)
        elif to is None:
            found = _out_of(container, source, target, bounds)
        else:
            other = container if to == of else stack.enter_context(reopen(to))
            found = _between(container, source, other, target, bounds)
    left = [each for each in found if each.saved is None]
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


def _target(container: WithFiles, target: str, name: str | None, tree: bool) -> str:
    """The path inside that the copy gets, by what stands there."""
    found = _kind(container, target)
    if found is None and target.endswith("/") and not tree:
        raise ValueError(f"there is no directory {target} inside; a name without / at its end is the file's")
    if found == "other" and tree:
        raise ValueError(f"{target} is a file inside, and the source a directory")
    return f"{target}/{name}" if found == "directory" and name is not None else target


def _into(container: WithFiles, source: str, target: str, bounds: dict[str, Any]) -> list[FileInfo]:
    if source == "-":
        return _unpacked(container, target, bounds)
    tree = os.path.isdir(source)
    container.put(source, _target(container, target, _own_name(source), tree), parents=tree, **bounds)
    return []


def _unpacked(container: WithFiles, target: str, bounds: dict[str, Any]) -> list[FileInfo]:
    from isolate.images.contained import put_archive

    if os.isatty(0):
        raise ValueError("an archive is read from stdin: send it one, by < or a pipe")
    if _kind(container, target) != "directory":
        raise ValueError(f"there is no directory {target} inside; an archive is unpacked into one")
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        return put_archive(container, stdin.read, target, parents=False, **bounds)


def _between(
    container: WithFiles, source: str, other: WithFiles, target: str, bounds: dict[str, Any]
) -> list[FileInfo]:
    tree = _kind(container, source) == "directory"
    target = _target(other, target, _own_name(f"/{source}"), tree)
    found = container.copy_to(other, source, target, parents=tree, **bounds)
    _one_at_least(found, source)
    return found


def _one_at_least(found: list[FileInfo], source: str) -> None:
    """A single thing that cannot be copied is an error, not something left out of a copy."""
    if len(found) == 1 and found[0].saved is None and found[0].path.strip("/") == source.strip("/"):
        raise _not_copied(source, found)


def _not_copied(source: str, found: list[FileInfo]) -> SetupError:
    number, cause = errno.ENOENT, "there is no such file"
    remedy = "isolate exec NAME ls shows what is there"
    if found:
        number, cause = errno.EINVAL, f"a {found[0].kind}; files and directories are copied"
        remedy = "a program inside can read it: isolate exec NAME cat PATH"
        if found[0].kind == "symlink":
            remedy = "copy what it leads to, or the link in an archive: isolate cp NAME:PATH -"
    step = "fetch files of the container"
    return SetupError(number, step, part="Container", path=printable(source), cause=cause, remedy=remedy)


def _out_of(container: WithFiles, source: str, target: str, bounds: dict[str, Any]) -> list[FileInfo]:
    """Fetched beside the target first: half of a file never has its name."""
    if target == "-":
        from isolate.images.contained import get_archive

        sys.stdout.flush()
        with open(1, "wb", buffering=0, closefd=False) as stdout:
            found = get_archive(container, source, lambda data: write_all(stdout.fileno(), data), **bounds)
        _one_at_least(found, source)
        return found
    name, present = _own_name(f"/{source}"), os.path.isdir(target)
    beside = tempfile.mkdtemp(
        prefix=".isolate-cp-", dir=target if present else os.path.dirname(os.path.abspath(target))
    )
    try:
        found = container.get(glob.escape(source), beside, **bounds)
        came = os.path.join(beside, *_fetched_as(source))
        if not os.path.lexists(came):
            raise _not_copied(source, found)
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
