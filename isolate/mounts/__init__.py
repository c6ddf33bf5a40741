"""The root of a sandbox, and what is mounted in it."""

from typing import TYPE_CHECKING

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

# Loaded when they are first used: a sandbox needs few of them, and a start should not wait for the others.
_HOMES = {
    "Bind": "bind",
    "Building": "building",
    "CgroupFs": "cgroupfs",
    "Dev": "dev",
    "Device": "device",
    "Dir": "files",
    "Entry": "building",
    "Etc": "etc",
    "File": "files",
    "FileSystem": "file_system",
    "Mask": "files",
    "Mqueue": "pseudo",
    "Overlay": "overlay",
    "Proc": "pseudo",
    "ReadOnly": "files",
    "Root": "root",
    "Symlink": "files",
    "Sys": "pseudo",
    "Tmpfs": "tmpfs",
    "TreeEntry": "building",
}

__all__ = [
    "Bind",
    "Building",
    "CgroupFs",
    "Dev",
    "Device",
    "Dir",
    "Entry",
    "Etc",
    "File",
    "FileSystem",
    "Mask",
    "Mqueue",
    "Overlay",
    "Proc",
    "ReadOnly",
    "Root",
    "Symlink",
    "Sys",
    "Tmpfs",
    "TreeEntry",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"isolate.mounts.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
