"""What this host can do, found by trying: in sandboxes that are thrown away, never by guessing from versions.

:func:`abilities` is what ``python -m isolate probe`` prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.cgroups.limits import Limits
from isolate.engine.plan import Part
from isolate.errors import SetupError
from isolate.sandbox.box import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Ability", "abilities"]


# ---- abilities ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ability:
    """One thing that a host can do for this caller, or why it cannot."""

    name: str
    #: What it is good for, in words.
    what: str
    ok: bool
    #: Why not; or a detail, such as a version.
    reason: str = ""
    remedy: str = ""


def abilities() -> tuple[Ability, ...]:
    """Try everything and tell. Takes some tens of milliseconds; leaves nothing behind; raises nothing."""
    return tuple(_abilities())


def _abilities() -> Iterator[Ability]:
    yield _try("start", "start a program under the launcher", lambda: Sandbox().check())
    yield _try("memfd", "the launcher runs from a sealed memfd", _memfd)
    user = _try("user", "user namespace: ids and capabilities of its own", lambda: Sandbox(_user()).check())
    yield user
    for kind, what in _NAMESPACES.items():
        yield _try(kind, what, lambda kind=kind: Sandbox(*_base(), _namespace(kind)).check())  # type: ignore[misc]
    for name, what, attempt in _NETWORKS:
        yield _try(name, what, attempt)
    yield _try("id-ranges", "many ids inside, by newuidmap and /etc/subuid", _ranges)
    for name, what, *entry in _ROOTS:
        yield _try(name, what, lambda entry=entry: _root(*entry))  # type: ignore[misc]
    yield _try("seccomp", "filters of system calls", _seccomp)
    yield _try("landlock", "rights to paths, ports and signals without namespaces", _landlock)
    for name, what, limits in _LIMITS:
        yield _try(name, what, lambda limits=limits: _limits(limits))  # type: ignore[misc]


_NAMESPACES = {
    "mount": "mount namespace: a mount table of its own",
    "pid": "pid namespace: only its own processes",
    "net": "network namespace: loopback alone",
    "ipc": "IPC namespace: System V and POSIX queues of its own",
    "uts": "UTS namespace: a host name of its own",
    "cgroup": "cgroup namespace: no view of the host's groups",
    "time": "time namespace: clocks of its own",
}

# Row, words, and the entry of a root: its class and arguments.
_ROOTS: tuple[tuple[str, str, str, tuple[str, ...], dict[str, object]], ...] = (
    ("root", "a root of its own, on tmpfs", "Dir", ("/empty",), {}),
    ("bind", "bind mounts of the host's files, read-only", "Bind", ("/usr",), {}),
    ("tmpfs", "a bounded tmpfs", "Tmpfs", ("/tmp",), {"size": "1M"}),
    ("proc", "its own /proc", "Proc", (), {}),
    ("sys", "its own /sys", "Sys", (), {}),
    ("dev", "its own /dev", "Dev", (), {}),
    ("mqueue", "its own POSIX message queues", "Mqueue", (), {}),
    ("overlay", "overlayfs: layers with a writable one on top", "Overlay", ("/layers",), {"lower": ["/usr"]}),
)

_LIMITS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("cgroup-pids", "limit of processes", {"pids": 64}),
    ("cgroup-memory", "limit of memory, swap included", {"memory": "256M"}),
    ("cgroup-cpu", "limit of CPU time per second", {"cpu": 0.5}),
    ("cgroup-cpuset", "choice of processors", {"cpus": "0"}),
)


def _try(name: str, what: str, attempt: Callable[[], str | None]) -> Ability:
    try:
        detail = attempt()
    except SetupError as error:
        reason = error.cause or str(error).partition("\n")[0]
        return Ability(name, what, False, reason, error.remedy or "")
    except (ImportError, AttributeError) as error:
        return Ability(name, what, False, f"this build of isolate lacks it ({error})")
    except (OSError, ValueError, RuntimeError) as error:
        return Ability(name, what, False, str(error).replace("\n", " "))
    return Ability(name, what, True, detail or "")


def _user() -> Part:
    from isolate.namespaces.part import UserNamespace

    return UserNamespace()


def _base() -> list[Part]:
    """What a caller without privileges needs for all the rest."""
    from isolate.diagnosis import Host

    return [] if Host().capable() else [_user()]


def _namespace(kind: str) -> Part:
    from isolate import namespaces

    part = getattr(namespaces, f"{kind.capitalize()}Namespace")()
    assert isinstance(part, Part)
    return part


def _network(**options: object) -> str | None:
    """Attach a sandbox to a network that is thrown away."""
    from isolate.network import Interface, Network

    with Network() as lan:
        Sandbox(*_base(), Interface(lan, **options)).check()  # type: ignore[arg-type]
    return None


def _delay() -> str | None:
    from isolate.network import Interface, Network

    with Network() as lan, Sandbox(*_base(), Interface(lan, name="tried")).spawn(["sleep", "9"]):
        lan.impair("tried", delay=0.001)
    return None


def _way_out() -> str | None:
    from isolate.network import Userspace
    from isolate.network.way import installed

    Sandbox(*_base(), Userspace()).check()
    return installed(None)


_NETWORKS: tuple[tuple[str, str, Callable[[], str | None]], ...] = (
    ("network", "networks of sandboxes: bridge, veth, tables of nftables that have an owner", _network),
    ("network-rate", "limits of an interface's rate, each way", lambda: _network(rate="100M")),
    ("network-delay", "packets that come late or damaged (netem)", _delay),
    ("uplink-user", "a way out of a network without root: pasta or slirp4netns", _way_out),
)


def _memfd() -> str | None:
    from isolate.engine import native

    if native.launcher_fd() < 0:
        raise OSError("vm.memfd_noexec forbids it; the installed file is run instead, which works as well")
    return None


def _ranges() -> str | None:
    from isolate.namespaces.ids import IdMap
    from isolate.namespaces.part import UserNamespace

    ids = IdMap.subordinate()
    Sandbox(UserNamespace(map=ids)).check()
    return f"{sum(r.count for r in ids.uids)} uids, {sum(r.count for r in ids.gids)} gids"


def _root(entry: str, args: tuple[str, ...], keywords: dict[str, object]) -> str | None:
    from isolate import mounts
    from isolate.namespaces.part import IpcNamespace, NetNamespace, PidNamespace

    # /proc, /sys and message queues show namespaces, and are to be had only with those.
    root = mounts.Root(getattr(mounts, entry)(*args, **keywords))
    Sandbox(*_base(), PidNamespace(), NetNamespace(), IpcNamespace(), root).check()
    return None


def _seccomp() -> str | None:
    from isolate.seccomp import Seccomp

    Sandbox(Seccomp.default()).check()
    return None


def _landlock() -> str | None:
    from isolate.landlock.part import FsAccess, Landlock, landlock_abi

    Sandbox(Landlock(rules=[("/", FsAccess.EXECUTE)], handled=FsAccess.EXECUTE)).check()
    return f"ABI {landlock_abi()}"


def _limits(arguments: dict[str, object]) -> str | None:
    box = Sandbox(Limits(**arguments))  # type: ignore[arg-type]
    box.check()
    ground = box._plan().context.ground
    return None if ground is None or ground.ready() else "in a scope that systemd is asked for (not tried)"
