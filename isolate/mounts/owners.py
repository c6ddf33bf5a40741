"""Whose the files of a mount look: id maps on mounts (mount_setattr(2), MOUNT_ATTR_IDMAP).

Files of the host belong to ids of the host, and a program in a user namespace may have others: a directory of the
caller's would then be nobody's inside. A mount with an id map shows the caller's files as the program's, and what the
program makes there belongs to the caller.
"""

from __future__ import annotations

import os
import stat
from errno import EINVAL, EPERM
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding
from isolate.engine.plan import MapOfIds, Op, Register, Store
from isolate.kernel.constants import MOUNT_ATTR_IDMAP
from isolate.mounts.calls import attributes
from isolate.namespaces.ids import IdMap, IdRange, is_host_root
from isolate.namespaces.part import UserNamespace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolate.engine.plan import Argument, Buffer, Context

__all__ = ["HINTS", "chosen", "for_the_program", "made", "given", "shut", "text_of"]

_OTHERWISE = "chown the directory to the program's id, or let others write to it (chmod o+rwx), and say idmap=False"
HINTS = {
    EINVAL: Finding("this file system, or one that is mounted below, cannot be mounted with an id map", _OTHERWISE),
    EPERM: Finding(
        "an id map on a mount is for root on the host (CAP_SYS_ADMIN in the file system's user namespace)", _OTHERWISE
    ),
}


def for_the_program(context: Context, source: bytes | int, *, writable: bool) -> IdMap | None:
    """The id map with which a file or directory of the caller's can be written by the program; None: it needs none.

    It needs one where the caller is root and the program has an unprivileged id of the host. Of two maps that would do
    the user namespace's own is taken where the owner has the same id inside (root in a container); there what is to be
    read and is closed to others gets it as well.
    """
    user = context.find(UserNamespace)
    if not context.privileged or user is None or user.joined or not is_host_root():
        return None
    try:
        found = os.stat(source)
    except OSError:
        return None
    ids = user.ids(context)
    uid, gid = _outside(ids.uids, user.uid), _outside(ids.gids, user.gid)
    directory = stat.S_ISDIR(found.st_mode)
    everybody = (0o3 if directory else 0o2) if writable else (0o5 if directory else 0o4)
    if uid == found.st_uid or found.st_uid != context.euid or found.st_mode & everybody == everybody:
        return None
    if user.uid == found.st_uid:
        return ids
    if not writable:
        return None
    return IdMap.single(found.st_uid, found.st_gid, host_uid=uid, host_gid=gid)


def chosen(context: Context, idmap: IdMap | int) -> IdMap | int | None:
    """The meaning of the argument ``idmap`` in a sandbox: True is the map of its user namespace, False is none."""
    if not isinstance(idmap, bool):
        return idmap
    user = context.find(UserNamespace)
    if not idmap or user is None or user.joined or not is_host_root():
        return None
    ids = user.ids(context)
    return None if all(r.inside == r.outside for r in (*ids.uids, *ids.gids)) else ids


def _outside(ranges: Iterable[IdRange], inside: int) -> int:
    return next(r.outside + inside - r.inside for r in ranges if r.inside <= inside < r.inside + r.count)


def shut(source: bytes | int, uid: int, gid: int) -> os.stat_result | None:
    """The status of a source that is closed by its mode to an id of the host without groups; None where it is open."""
    try:
        found = os.stat(source)
    except OSError:
        return None
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    wanted = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
    return None if found.st_mode >> shift & wanted == wanted else found


def text_of(ids: IdMap) -> str:
    """In words."""
    return ", ".join(f"{kind} {r}" for kind, ranges in (("uid", ids.uids), ("gid", ids.gids)) for r in ranges)


def made(ids: IdMap, namespace: Register) -> Op:
    """A user namespace that is nothing but a map."""
    uids, gids = ("".join(f"{r}\n" for r in ranges).encode() for ranges in (ids.uids, ids.gids))
    return MapOfIds(uids, gids, namespace)


def given(tree: Register, namespace: Argument, *, recursive: bool) -> list[Op]:
    """Give an id map to a mount that is attached nowhere yet. For root on the host, outside of new namespaces."""
    change = attributes(tree, MOUNT_ATTR_IDMAP, recursive=recursive)
    buffer: Buffer = change.args[3]  # type: ignore[union-attr, assignment]
    return [Store(buffer, 24, namespace, 8), change]
