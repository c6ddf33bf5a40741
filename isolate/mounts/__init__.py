"""The root of a sandbox, and what is mounted in it."""

from typing import TYPE_CHECKING

from isolate.kernel import lazy as _lazy

if TYPE_CHECKING:
    from isolate.mounts.bind import Bind as Bind
    from isolate.mounts.building import Building as Building
    from isolate.mounts.building import Entry as Entry
    from isolate.mounts.building import TreeEntry as TreeEntry
    from isolate.mounts.cgroupfs import CgroupFs as CgroupFs
    from isolate.mounts.dev import Dev as Dev
    from isolate.mounts.device import Device as Device
    from isolate.mounts.etc import Etc as Etc
    from isolate.mounts.file_system import FileSystem as FileSystem
    from isolate.mounts.files import Dir as Dir
    from isolate.mounts.files import File as File
    from isolate.mounts.files import Mask as Mask
    from isolate.mounts.files import ReadOnly as ReadOnly
    from isolate.mounts.files import Symlink as Symlink
    from isolate.mounts.overlay import Overlay as Overlay
    from isolate.mounts.pseudo import Mqueue as Mqueue
    from isolate.mounts.pseudo import Proc as Proc
    from isolate.mounts.pseudo import Sys as Sys
    from isolate.mounts.root import Root as Root
    from isolate.mounts.tmpfs import Tmpfs as Tmpfs

# Loaded when they are first used: a sandbox needs few of them.
_HOMES = {
    "bind": "Bind",
    "building": "Building Entry TreeEntry",
    "cgroupfs": "CgroupFs",
    "dev": "Dev",
    "device": "Device",
    "etc": "Etc",
    "file_system": "FileSystem",
    "files": "Dir File Mask ReadOnly Symlink",
    "overlay": "Overlay",
    "pseudo": "Mqueue Proc Sys",
    "root": "Root",
    "tmpfs": "Tmpfs",
}

__all__ = _lazy.names(_HOMES)
__getattr__, __dir__ = _lazy.face(__name__, _HOMES)
