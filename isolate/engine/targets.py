"""Why a place beneath a root could not be reached or made: what the errors of the op ``Target`` mean."""

from __future__ import annotations

import errno

from isolate.engine.finding import Finding

__all__ = ["TARGET"]

TARGET = {
    errno.EROFS: Finding(
        "the target does not exist, and what it would be made in is mounted read-only",
        "make it in the source beforehand, or put a Tmpfs or Overlay there first; entries are applied in order",
    ),
    errno.ENOTDIR: Finding(
        "a file stands where a directory should be, or something on the way to the target is no directory",
        "look at the root's tree, and name a target of the same kind",
    ),
    errno.ELOOP: Finding(
        "a symbolic link stands on the way to the target where none is followed, or links go round",
        "name the target itself",
    ),
    errno.EXDEV: Finding(
        "the target leads out of the root, or into another file system than it must lie in", "name another"
    ),
    errno.EEXIST: Finding(
        "the target is there already and must not be, or a symbolic link that leads nowhere stands in the way",
        "name another",
    ),
    errno.ENOENT: Finding("the target does not exist in the root", "make it first, for example with Dir or File"),
    errno.EOVERFLOW: Finding(
        "the directory's owner is not in the user namespace's id map, so nothing can be made in it",
        "map its owner, or put a Tmpfs there first",
    ),
    errno.EACCES: Finding(
        "the directory that the target would be made in does not allow it: its owner is not in the user namespace's id"
        " map, or its mode",
        "make the target in the source beforehand, map its owner, or put a Tmpfs there first",
    ),
    errno.ENOSPC: Finding("the file system that the target would be made in is full", "make room, or raise its size"),
}
