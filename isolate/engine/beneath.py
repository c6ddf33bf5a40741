"""How a path of the caller's is opened when a program could have changed what lies on its way.

A program that may write to a directory can replace what lies below by a symbolic link, and a later run that opens the
same path with the caller's rights would be led anywhere. So a path that lies below a writable one is opened from the
descriptor of that one, beneath it and without symbolic links (openat2(2): RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any

from isolate.engine.finding import Finding
from isolate.engine.plan import Buffer, Jump, Label, Op, Register, call
from isolate.kernel.constants import AT_FDCWD, O_CLOEXEC, O_PATH, Constant
from isolate.kernel.paths import absolute, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from isolate.engine.plan import Context

__all__ = ["Writable", "check_beneath", "led_astray", "lexical", "open_beneath", "place_of"]

# O_DIRECTORY is 0o200000 on x86-64 and 0o40000 on AArch64.
O_DIRECTORY = Constant(os.O_DIRECTORY, "O_DIRECTORY")
# openat2(2): RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH
_RESOLVE = 0x02 | 0x04 | 0x08
_MOST_LINKS = 40  # as the kernel's MAXSYMLINKS


def lexical(path: bytes) -> bytes:
    """An absolute path without ``.``, ``..`` and repeated slashes; symbolic links are not looked at."""
    return os.path.normpath(b"/" + path.lstrip(b"/"))


def check_beneath(path: object, beneath: object, what: str) -> bytes:
    """The value of a ``beneath=`` keyword.

    :raises ValueError: the path does not lie below it.
    """
    base = lexical(absolute(beneath, f"{what}: beneath"))
    if isinstance(path, int):
        raise TypeError(f"{what}: beneath is for a path; a descriptor is open already")
    if not _is_below(lexical(absolute(path)), base):
        raise ValueError(f"{what}: {text(absolute(path))!r} does not lie below {text(base)!r}")
    return base


def _is_below(path: bytes, base: bytes) -> bool:
    return path != base and path.startswith(base.rstrip(b"/") + b"/")


class Writable:
    """The directories of the host that a program may write to, as far as the parts of its sandbox say so."""

    def __init__(self, paths: Iterable[bytes | int]) -> None:
        self._names: set[bytes] = set()
        self._identities: set[tuple[int, int]] = set()
        for path in paths:
            if isinstance(path, bytes):
                self._names.add(lexical(path))
            try:
                found = os.stat(path)
            except OSError:
                continue  # not there yet, or not the caller's to see: known by its name alone
            self._identities.add((found.st_dev, found.st_ino))

    def __bool__(self) -> bool:
        return bool(self._names or self._identities)

    def _has(self, path: bytes) -> bool:
        if path in self._names:
            return True
        try:
            found = os.stat(path, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) in self._identities

    def below(self, path: bytes) -> tuple[bytes, bytes] | None:
        """The outermost writable directory on the way to a path, and the rest of the path; None if there is none.

        Directories are compared by identity too: the way may lead through links and mounts of the caller's own. What
        lies below a writable directory is not looked at: it may change until the path is opened.
        """
        at, base, rest, links = b"/", b"/" if self._has(b"/") else b"", list[bytes](), 0
        todo = path.split(b"/")[::-1]
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if base and (rest or name != b".."):
                if name == b"..":
                    rest.pop()
                else:
                    rest.append(name)
                continue
            if name == b"..":
                at, base = os.path.dirname(at), b""
            else:
                at = os.path.join(at, name)
                if links < _MOST_LINKS and os.path.islink(at):
                    links += 1
                    target = os.readlink(at)
                    at = b"/" if target.startswith(b"/") else os.path.dirname(at)
                    todo += target.split(b"/")[::-1]
            base = at if self._has(at) else b""
        return (base, b"/".join(rest)) if base and rest else None


class Names(Writable):
    """Directories inside a root that is not there yet: known by their names alone."""

    def __init__(self, paths: Iterable[bytes]) -> None:
        super().__init__(())
        self._names = {lexical(path) for path in paths}

    def below(self, path: bytes) -> tuple[bytes, bytes] | None:
        """As :meth:`Writable.below`, by the names."""
        path = lexical(path)
        found = min((base for base in self._names if _is_below(path, base)), key=len, default=None)
        return None if found is None else (found, path[len(found.rstrip(b"/")) + 1 :])


def place_of(path: bytes, writable: Writable, beneath: bytes | None = None) -> tuple[bytes, bytes] | None:
    """From which directory a path is to be opened, and the rest of the path; None: as it stands."""
    found = writable.below(path) if writable else None
    if beneath is None or (found is not None and not _is_below(found[0], beneath)):
        return found
    return beneath, lexical(path)[len(beneath.rstrip(b"/")) + 1 :]


def open_beneath(base: bytes, rest: bytes, out: Register, *, result: Register | None = None, **policy: Any) -> list[Op]:
    """An O_PATH descriptor of what lies below a directory: not outside of it, and not behind a link.

    ``policy`` (``errors``, ``policy``, ``label``) is for what is not there; ``result`` then holds an error.
    """
    directory, no_base, absent, found = Register("base"), Label(), Label(), Label()
    how = Buffer(struct.pack("<QQQ", O_PATH | O_CLOEXEC, 0, _RESOLVE), "{O_PATH, BENEATH|NO_SYMLINKS|NO_MAGICLINKS}")

    def missing(label: Label) -> dict[str, Any]:
        return {"errors": policy["errors"], "policy": "jump", "label": label} if policy else {}

    ops: list[Op] = [
        call("openat", AT_FDCWD, base, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, out=directory, **missing(no_base)),
        call("openat2", directory, rest, how, len(how.data), out=out, **missing(absent)),
        call("close", directory),
    ]
    if policy:
        failed = {**policy, "errors": (errno.EBADF,), "out": result}
        ops += [
            Jump(found),
            absent,
            call("close", directory),
            call("close", out, **failed),  # a register that holds an error: EBADF, which takes the caller's way out
            no_base,
            call("close", directory, **failed),
            found,
        ]
    return ops


def led_astray(base: bytes) -> Mapping[int, Finding]:
    """The meaning of the errors of :func:`open_beneath`."""
    link = Finding(
        f"a symbolic link stands below {text(base)}, which a program may write to: it is not followed, as it could lead"
        " anywhere",
        "name the place that it leads to, or let the program write elsewhere",
    )
    return {errno.ELOOP: link, errno.EXDEV: link}


def writable_sources(context: Context) -> Writable:
    """The places of the host that the sandbox's roots show writable."""
    found = context.shared.get("mounts.writable")
    if found is None:
        found = context.shared["mounts.writable"] = Writable(_of_entries(context, "writes_to"))
    assert isinstance(found, Writable)
    return found


def writable_targets(context: Context) -> Iterator[bytes]:
    """The paths inside that show it."""
    for path in _of_entries(context, "writes_at"):
        assert isinstance(path, bytes)
        yield path


def _of_entries(context: Context, method: str) -> Iterator[bytes | int]:
    for part in context.parts:
        for entry in getattr(part, "entries", ()):
            tell = getattr(entry, method, None)
            if tell is not None:
                yield from tell()
