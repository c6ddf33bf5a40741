"""The attempts: each is a sandbox that is set up and thrown away, and where something is denied, the denial is met."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from isolate.cgroups.limits import Limits
from isolate.engine.plan import Part
from isolate.errors import SetupError
from isolate.sandbox.box import Sandbox
from isolate.tools.doctor import proofs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from isolate.tools.doctor.remedies import Remedies

__all__ = ["GROUPS", "Ability", "Row", "attempt_all", "carry_out"]

GROUPS = ("start", "namespaces", "root", "limits", "filters", "images", "networks")
_AT_ONCE = 8


@dataclass(frozen=True)
class Ability:
    """One thing that a host can do for this caller, or why it cannot.

    >>> Ability("user", "user namespace", True).ok
    True
    """

    name: str
    #: Its purpose, in words.
    what: str
    ok: bool
    #: Why not; or a detail, such as a version.
    reason: str = ""
    #: The remedy, in words.
    remedy: str = ""
    #: One of ``GROUPS``: start, namespaces, root, limits, filters, images, networks.
    group: str = ""
    #: The access that was denied inside and possible outside; empty if none is denied.
    proof: str = ""
    #: The remedy as text to paste: a command, options, a security context.
    paste: str = ""


def attempt_all(remedies: Remedies, also: Sequence[Row] = ()) -> tuple[Ability, ...]:
    """Carry out all attempts, a few at a time; the results of ``also`` come first."""
    rows = [*also, *_attempts(remedies)]
    try:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="doctor") as pool:
            return tuple(pool.map(lambda row: carry_out(*row, remedies=remedies), rows))
    except RuntimeError:  # no thread can be started here: a limit of processes, which the rows tell of
        return tuple(carry_out(*row, remedies=remedies) for row in rows)


def carry_out(
    name: str, what: str, group: str, attempt: Callable[[], str | proofs.Proof | None], *, remedies: Remedies
) -> Ability:
    """One attempt as a row."""
    row = Ability(name, what, False, group=group)
    try:
        found = attempt()
    except SetupError as error:
        reason = error.cause or str(error).partition("\n")[0]
        remedy, paste = remedies.of(group, error)
        return dataclasses.replace(row, reason=reason, remedy=remedy, paste=paste)
    except (ImportError, AttributeError) as error:
        return dataclasses.replace(row, reason=f"this build of isolate lacks it ({error})")
    except (OSError, ValueError, RuntimeError) as error:
        remedy, paste = remedies.of(group, error)
        return dataclasses.replace(row, reason=str(error).replace("\n", " "), remedy=remedy, paste=paste)
    if isinstance(found, proofs.Proof):
        return dataclasses.replace(row, ok=True, reason=found.detail, proof=found.words)
    return dataclasses.replace(row, ok=True, reason=found or "")


Row: TypeAlias = "tuple[str, str, str, Callable[[], str | proofs.Proof | None]]"


def _attempts(remedies: Remedies) -> Iterator[Row]:
    base = [] if remedies.host.capable() else [_user()]
    yield "start", "start a program under the launcher", "start", lambda: Sandbox().check()
    yield "memfd", "the launcher runs from a sealed memfd", "start", _memfd
    yield "user", "user namespace: ids and capabilities of its own", "namespaces", lambda: Sandbox(_user()).check()
    for kind, what in _NAMESPACES.items():
        yield kind, what, "namespaces", lambda kind=kind: _new(base, kind)  # type: ignore[misc]
    yield "id-ranges", "many ids inside, by newuidmap", "namespaces", lambda: _ranges(remedies)
    for name, what, entry, args, keywords in _ROOTS:
        yield name, what, "root", lambda e=entry, a=args, k=keywords: _root(e, a, k)  # type: ignore[misc]
    for name, what, limits in _LIMITS:
        yield name, what, "limits", lambda name=name, limits=limits: _limits(name, limits)  # type: ignore[misc]
    yield "seccomp", "filters of system calls", "filters", proofs.seccomp
    yield "landlock", "rights to paths, ports and signals without namespaces", "filters", _landlock
    yield "notify", "system calls answered by the caller (seccomp notification)", "filters", _notify
    yield "image-root", "layers of an image as a root, each file with its owner", "images", _image_root
    words = "files of images that are on disk once if their contents are equal: data-only layers"
    yield "image-contents", words, "images", _image_contents
    yield "zstd", "layers compressed by zstd (extra: images)", "images", _zstd
    for name, what, attempt in _NETWORKS:
        yield name, what, "networks", lambda attempt=attempt: attempt(base)  # type: ignore[misc]


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
    ("cgroup-pids", "limit of processes", {"pids": 8}),
    ("cgroup-memory", "limit of memory, swap included", {"memory": "48M"}),
    ("cgroup-cpu", "limit of CPU time per second", {"cpu": 0.5}),
    ("cgroup-cpuset", "choice of processors", {"cpus": "0"}),
)


def _user() -> Part:
    from isolate.namespaces.part import UserNamespace

    return UserNamespace()


def _new(base: list[Part], kind: str) -> proofs.Proof | None:
    from isolate import namespaces

    part = getattr(namespaces, f"{kind.capitalize()}Namespace")()
    assert isinstance(part, Part)
    proof = proofs.namespace(base, kind, part)
    return proof if kind != "mount" or proof is None else dataclasses.replace(proof, detail=_alone())


def _alone() -> str:
    """Whether the kernel can make one without a copy of the host's table, in words."""
    from isolate.diagnosis.alone import made_alone

    ways = made_alone()
    found = [name for name, has in ways.items() if has]
    if found:
        return f"one without a copy of the host's table can be made by {' and '.join(found)}; not used yet"
    if None in ways.values():
        return "whether the kernel has to copy the host's table for it cannot be seen"
    return "the kernel copies the host's table for it"


def _memfd() -> str | None:
    from isolate.engine import native

    if native.launcher_fd() < 0:
        raise OSError("vm.memfd_noexec forbids it; the installed file is run instead, which works as well")
    return None


def _ranges(remedies: Remedies) -> str | None:
    from isolate.namespaces.ids import IdMap, is_host_root
    from isolate.namespaces.part import UserNamespace

    if is_host_root():
        Sandbox(UserNamespace(map=IdMap.unprivileged())).check()
        return "root maps any without it"
    ids = IdMap.subordinate()
    Sandbox(UserNamespace(map=ids)).check()
    shared = "; others hold some of them too" if remedies.shared_ranges() else ""
    return f"{sum(r.count for r in ids.uids)} uids, {sum(r.count for r in ids.gids)} gids{shared}"


def _root(entry: str, args: tuple[str, ...], keywords: dict[str, object]) -> str | None:
    """A root with this entry, in a user namespace as the presets have one.

    /proc, /sys and message queues show namespaces, and are to be had only with those.
    """
    from isolate import mounts
    from isolate.namespaces.part import IpcNamespace, NetNamespace, PidNamespace

    root = mounts.Root(getattr(mounts, entry)(*args, **keywords))
    shown: dict[str, Part] = {"Proc": PidNamespace(), "Sys": NetNamespace(), "Mqueue": IpcNamespace()}
    needs = [shown[entry]] if entry in shown else []
    Sandbox(_user(), *needs, root).check()
    return None


def _landlock() -> proofs.Proof:
    from isolate.landlock.part import landlock_abi

    return proofs.landlock(f"ABI {landlock_abi()}")


def _notify() -> str | None:
    from isolate.seccomp import Seccomp
    from isolate.seccomp.notify import Call, Reply

    def answer(call: Call) -> Reply:
        return Reply.proceed()

    Sandbox(Seccomp.default(), Seccomp(otherwise="allow", notify={"getpriority": answer})).check()
    return None


def _limits(name: str, arguments: dict[str, object]) -> str | proofs.Proof | None:
    part = Limits(**arguments)  # type: ignore[arg-type]
    box = Sandbox(part)
    box.check()
    ground = box._plan().context.ground
    if ground is not None and not ground.ready():
        return "in a scope that systemd is asked for (not tried)"
    return proofs.limit(name, part)


def _image_root() -> str | None:
    from isolate.mounts import Overlay, Root
    from isolate.namespaces.ids import IdMap, is_host_root
    from isolate.namespaces.part import UserNamespace

    ids = IdMap.unprivileged() if is_host_root() else None
    Sandbox(UserNamespace(map=ids), Root(Overlay("/", lower=["/usr"], idmap=True))).check()
    return None if ids is not None else "one owner: the caller; more with id-ranges"


def _image_contents() -> str | None:
    from isolate.images.trial import try_it

    try_it()
    return 'Store(path, share="contents"): for the lowest layer of an image'


def _zstd() -> str | None:
    import importlib.util
    import sys

    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        found = importlib.util.find_spec(name)
    except ImportError:
        found = None
    if found is None:
        raise OSError(f"{name} is not installed")
    return None


def _network(base: list[Part], **options: object) -> str | None:
    """Attach a sandbox to a network that is thrown away."""
    from isolate.network import Interface, Network

    with Network() as lan:
        Sandbox(*base, Interface(lan, **options)).check()  # type: ignore[arg-type]
    return None


def _delay(base: list[Part]) -> str | None:
    from isolate.network import Interface, Network

    with Network() as lan, Sandbox(*base, Interface(lan, name="tried")).spawn(["sleep", "9"]):
        lan.impair("tried", delay=0.001)
    return None


def _way_out(base: list[Part]) -> str | None:
    from isolate.network import Userspace
    from isolate.network.way import installed

    Sandbox(*base, Userspace()).check()
    return installed(None)


_NETWORKS: tuple[tuple[str, str, Callable[[list[Part]], str | None]], ...] = (
    ("network", "networks of sandboxes: bridge, veth, tables of nftables that have an owner", _network),
    ("network-rate", "limits of an interface's rate, each way", lambda base: _network(base, rate="100M")),
    ("network-delay", "packets that come late or damaged (netem)", _delay),
    ("uplink-user", "a way out of a network without root: pasta or slirp4netns", _way_out),
)
