"""Files that programs look up in ``/etc``: names of users, and the address of ``localhost``."""

from __future__ import annotations

import errno
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from isolate.attributes.credentials import Credentials
from isolate.engine.plan import Op, Register, call
from isolate.kernel.checks import keywords
from isolate.kernel.paths import StrOrBytesPath, inside, text
from isolate.mounts.building import CREATE
from isolate.mounts.files import File
from isolate.mounts.showing import Shown
from isolate.namespaces.part import UserNamespace, UtsNamespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context, Step
    from isolate.mounts.building import Building

__all__ = ["Etc"]

_NOBODY = 65534


@keywords
@dataclass(frozen=True, repr=False)
class Etc(Shown):
    """``passwd``, ``group``, ``hosts`` and ``nsswitch.conf`` for the ids and the host name inside, in ``target``.

    The program's user and group have names (passwd(5), group(5)), ``localhost`` and the sandbox's host name are
    addresses of the loopback (hosts(5)), and nothing else is asked but these files and name servers (nsswitch.conf(5)):
    by default if another entry or part of the sandbox makes a ``resolv.conf`` there, as a network does. ``home`` is the
    user's home directory. Each is a read-only file of its own, over what is there.

    :param target: directory inside.
    :param home: the user's home directory inside.
    :param dns: True: ask name servers too; False: never; None: if the sandbox says which.

    >>> box = Sandbox(UserNamespace(), Root(Bind("/", "/"), Etc(home="/root")))
    >>> box.run(["cat", "/etc/passwd"]).stdout.startswith(b"root:x:0:0:")
    True
    """

    target: StrOrBytesPath = "/etc"
    _: KW_ONLY
    home: str = "/tmp"
    dns: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "Etc: target"))
        if not isinstance(self.home, str) or not self.home.startswith("/") or set(self.home) & set(":\n\0"):
            raise ValueError(f"Etc: home must be an absolute path without colon and newline, not {self.home!r}")
        if self.dns is not None and not isinstance(self.dns, bool):
            raise TypeError(f"Etc: dns must be True, False or None, not {self.dns!r}")

    def files(self, context: Context, *, servers: bool = False) -> dict[str, str]:
        """The files by name. ``servers``: whether the sandbox says which name servers there are."""
        dns = servers if self.dns is None else self.dns
        uid, gid = _ids(context)
        user = {0: "root", _NOBODY: "nobody"}.get(uid, "user")
        group = {0: "root", _NOBODY: "nogroup"}.get(gid, "user")
        users = {0: "root:x:0:0:root:/root:/bin/sh", _NOBODY: f"nobody:x:{_NOBODY}:{_NOBODY}:nobody:/:/bin/sh"}
        users[uid] = f"{user}:x:{uid}:{gid}:{user}:{self.home}:/bin/sh"
        groups = {0: "root:x:0:", _NOBODY: f"nogroup:x:{_NOBODY}:"}
        groups[gid] = f"{group}:x:{gid}:"
        uts = context.find(UtsNamespace)
        name = "" if uts is None or not uts.hostname else f"127.0.1.1\t{uts.hostname}\n"
        return {
            "passwd": "".join(f"{users[n]}\n" for n in sorted(users)),
            "group": "".join(f"{groups[n]}\n" for n in sorted(groups)),
            "hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{name}",
            "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nservices: files\nprotocols: files\n"
            f"hosts: files{' dns' if dns else ''}\n",
        }

    def steps_in(self, building: Building) -> Iterator[Step]:
        """A file each; where the directory is ours they lie in it, and need no mount."""
        target = inside(self.target)
        servers = any(getattr(entry, "place", None) == target + b"/resolv.conf" for entry in building.entries)
        files = self.files(building.context, servers=servers)
        if building.own is None or target.count(b"/") != 1 or building.taken & {b"/", target}:
            for name, data in files.items():
                yield from File(f"{text(target)}/{name}", data).steps_in(building)
            return
        directory, scratch, fd = building.own + target, building.scratch_root, Register("file")
        ops: list[Op] = [call("mkdirat", scratch, directory, 0o755, errors=(errno.EEXIST,))]
        for name, data in files.items():
            ops += [
                call("openat", scratch, directory + b"/" + name.encode(), CREATE, 0o644, out=fd),
                call("write", fd, data.encode(), len(data), expect=len(data)),
                call("fchmod", fd, 0o644),
                call("close", fd),
            ]
        building.scratch(4096 * (len(files) + 1), f"{', '.join(files)} in {text(target)}", ops)
        building.add_inodes(len(files))


def _ids(context: Context) -> tuple[int, int]:
    """The program's uid and gid, as far as the parts set them (see :class:`~isolate.Credentials`)."""
    credentials, user = context.find(Credentials), context.find(UserNamespace)
    uid, gid = (context.euid, context.egid) if user is None else (user.uid, user.gid)
    if credentials is not None:
        uid = uid if credentials.uid is None else credentials.uid
        gid = gid if credentials.gid is None else credentials.gid
    return uid, gid
