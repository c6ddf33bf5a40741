"""``Sysctl``: the kernel's settings that each namespace has for itself."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isolate.engine.finding import Finding
from isolate.engine.plan import Phase, Step
from isolate.errors import ConflictError
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.constants import AT_FDCWD
from isolate.namespaces.part import IpcNamespace, NetNamespace, UserNamespace, UtsNamespace
from isolate.namespaces.quotas import write_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context

__all__ = ["Sysctl"]

#: The namespace that has its own copy of a setting, by the beginning of the setting's name.
_NAMESPACES = (
    ("net.", NetNamespace),
    ("kernel.shm", IpcNamespace),
    ("kernel.msg", IpcNamespace),
    ("kernel.sem", IpcNamespace),
    ("kernel.hostname", UtsNamespace),
    ("kernel.domainname", UtsNamespace),
    ("fs.mqueue.", IpcNamespace),
    ("user.", UserNamespace),
)


@keywords
@dataclass(frozen=True, init=False)
class Sysctl:
    """Settings below /proc/sys that belong to a namespace (sysctl(8)), of the sandbox's own.

    .. code-block:: python

        Sysctl({"net.ipv4.ip_unprivileged_port_start": 0, "kernel.msgmax": 65536, "net.ipv4.conf.lo.forwarding": "1"})

    ``net.*`` needs :class:`NetNamespace`, ``kernel.shm*``, ``kernel.msg*``, ``kernel.sem`` and ``fs.mqueue.*``
    :class:`IpcNamespace`, ``kernel.hostname`` and ``kernel.domainname`` :class:`UtsNamespace`, ``user.*``
    :class:`UserNamespace`: a new one each, or the host's own settings would change. A name with a slash in place of
    dots is a path below /proc/sys (``net/ipv4/conf/eth0.1/forwarding``).

    They are written once, before the program starts; each is to be taken as it stands. Needs CAP_SYS_ADMIN or
    CAP_NET_ADMIN over the namespace, as its maker has.

    :raises ValueError: a name that is none, or whose setting is the whole host's.
    :raises ConflictError: the namespace is not new here.

    :param settings: names of settings, and their values.

    >>> box = Sandbox(UserNamespace(), NetNamespace(), Sysctl({"net.ipv4.ip_unprivileged_port_start": 80}))
    >>> box.run(["true"]).ok
    True
    """

    required: ClassVar[bool] = True

    settings: tuple[tuple[str, str], ...]

    def __init__(self, settings: Mapping[str, str | int]) -> None:
        if not isinstance(settings, Mapping):
            raise TypeError(f"Sysctl: settings must be a mapping of names to values, not {settings!r}")
        found = []
        for name, value in settings.items():
            if not (is_int(value) or isinstance(value, str)) or "\0" in str(value) or not str(value):
                raise TypeError(f"Sysctl: {name} must be a str or an int, not {value!r}")
            _home(name)
            found.append((name, str(value)))
        object.__setattr__(self, "settings", tuple(found))

    def __repr__(self) -> str:
        return f"Sysctl({dict(self.settings)!r})"

    def steps(self, context: Context) -> Iterator[Step]:
        """One for each setting, by init, in the namespaces."""
        for name, value in self.settings:
            kind = _home(name)
            part = context.find(kind)
            if part is None or part.joined:
                raise ConflictError(f"Sysctl: {name} is the host's own without a new {kind.__name__}()")
            path = b"/proc/sys/" + _path(name).encode()
            yield Step(
                Phase.SYSTEM,
                f"{name} = {value}",
                tuple(write_file(AT_FDCWD, path, value.encode())),
                path=path,
                hints={
                    errno.ENOENT: Finding(
                        "this kernel has no such setting, or a new namespace has none of its own",
                        "compare with ls /proc/sys on the host (Documentation/admin-guide/sysctl), or leave it out",
                    ),
                    errno.EINVAL: Finding("the kernel refuses the value", f"compare with: sysctl {name}"),
                    errno.EROFS: Finding(
                        "/proc/sys is read-only here (a container)",
                        "start the container with a writable /proc/sys (Docker, Podman: --privileged or "
                        "--security-opt unmask=ALL), or leave the setting out",
                    ),
                    errno.EACCES: _ROOTS,
                    errno.EPERM: _ROOTS,
                },
            )


_ROOTS = Finding("the setting belongs to the host's root", "run as root, or leave it out")


def _path(name: str) -> str:
    return name if "/" in name else name.replace(".", "/")


def _home(name: object) -> type[NetNamespace | IpcNamespace | UtsNamespace | UserNamespace]:
    if not isinstance(name, str) or not name or "\0" in name or ".." in name or name.startswith(("/", ".")):
        raise ValueError(f"Sysctl: not the name of a setting: {name!r}")
    dotted = _path(name).replace("/", ".")
    for beginning, kind in _NAMESPACES:
        if dotted.startswith(beginning):
            return kind
    raise ValueError(
        f"Sysctl: {name} is a setting of the whole host; those of a namespace begin with "
        f"{', '.join(beginning for beginning, _ in _NAMESPACES)}"
    )
