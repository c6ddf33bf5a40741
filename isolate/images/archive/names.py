"""The rules for names in an archive."""

from __future__ import annotations

from isolate.images.errors import LayerError

__all__ = ["MAX_NAME", "MAX_PATH", "OPAQUE", "WHITEOUT", "check_own", "link_target", "path_of", "whiteout_of"]

MAX_PATH = 4096
MAX_NAME = 255
#: The prefix of a whiteout: it stands for the removal of what is named behind it (image-spec, layer.md).
WHITEOUT = b".wh."
#: The whiteout of everything that lower layers have in this directory.
OPAQUE = b".wh..wh..opq"


def check_own(path: bytes) -> None:
    """Refuse to pack a file whose name would remove another when it is unpacked.

    :raises LayerError: the last component begins with ``.wh.``.
    """
    if path.rpartition(b"/")[2].startswith(WHITEOUT):
        raise LayerError(path, "a name that begins with .wh., which in an archive removes what lower layers have")


def path_of(name: bytes, what: str = "name") -> bytes:
    """The path of a name: without ``./``, doubled slashes and slashes at its ends. The top is ``b""``.

    An absolute name is one below the top, as it is for GNU tar, umoci and Docker: kaniko writes ``/`` for the top and
    absolute targets of hard links.

    :raises LayerError: with ``..``, with a NUL, empty, or too long.
    """
    if not name:
        raise LayerError(name, f"an empty {what}")
    if b"\0" in name:
        raise LayerError(name, f"a NUL in the {what}")
    if len(name) > MAX_PATH:
        raise LayerError(name[:64] + b"...", f"a {what} of {len(name)} bytes; the limit is {MAX_PATH}")
    parts = name.split(b"/")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in (b"", b".")]
    if b".." in parts:
        raise LayerError(name, f"'..' in the {what}")
    if len(name) > MAX_NAME:
        for part in parts:
            if len(part) > MAX_NAME:
                raise LayerError(name, f"a component of {len(part)} bytes in the {what}; the limit is {MAX_NAME}")
    return b"/".join(parts)


def link_target(name: bytes, target: bytes) -> bytes:
    """The target of a symbolic link, as it is: nothing of ours ever follows it.

    :raises LayerError: empty, too long, or with a NUL.
    """
    if not target:
        raise LayerError(name, "a symbolic link to nothing")
    if b"\0" in target:
        raise LayerError(name, "a NUL in the target of a link")
    if len(target) >= MAX_PATH:
        raise LayerError(name, f"a target of {len(target)} bytes; the limit is {MAX_PATH - 1}")
    return target


def whiteout_of(path: bytes, base: bytes) -> bytes | None:
    """The name that a whiteout with that last component removes, None for ``.wh..wh..opq``.

    :raises LayerError: the whiteout of nothing, of ``.`` or ``..``, or another name that is reserved.
    """
    if base == OPAQUE:
        return None
    name = base[len(WHITEOUT) :]
    if name in (b"", b".", b".."):
        raise LayerError(path, "a whiteout of nothing, or of the directory itself or its parent")
    if name.startswith(WHITEOUT):
        raise LayerError(path, "a reserved name: it begins with .wh..wh. and is not .wh..wh..opq")
    return name
